"""What run, evaluate and diagnose print: JSON alone if asked, else tables and what comes next."""

import json


def test_run_evaluate_and_diagnose_print_json_or_tables_and_the_next_command(
    fedsdr, write_config, tmp_path
):
    write_config()
    run = tmp_path / "my run"
    rounds = ["--set", "federation.rounds=1"]
    code, out, _ = fedsdr("run", tmp_path / "config.toml", *rounds, "--out", run, "--json")
    saved = json.loads((run / "results.json").read_text())
    saved = {k: v for k, v in saved.items() if k not in ("examples", "check")}
    assert (code, json.loads(out)) == (0, saved)
    assert (run / "report.html").exists()

    _, out, _ = fedsdr("run", tmp_path / "config.toml", *rounds, "--out", run, "--resume")
    assert out.splitlines()[-1].startswith(f"next: fedsdr chat '{run}' (talk to the models), ")

    code, out, _ = fedsdr("evaluate", run, "--json")
    assert (code, json.loads(out)["mean"]) == (0, saved["mean"])

    code, out, _ = fedsdr("diagnose", run, "--only", "serving", "--json")
    assert (code, json.loads(out)["serving"]["of"]) == (0, "test")
