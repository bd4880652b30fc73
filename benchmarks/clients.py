"""Cost of many clients: memory, switching between clients, and the server's work per update.

    python benchmarks/clients.py [--quick] [--out clients.json]

Each part runs in its own process, so that memory peaks are separate:

- memory: a whole run (rounds, checkpoints, evaluation) of a tiny random model with 8, 40 and 400
  clients of 16 rows each; goal: peaks within 5 %.
- change: switching clients (load S, set R and S, read both back, save S) with the adapters of a
  135M model, relative to training one client; goal: under 1 %.
- server: one round of 1,000 updates with the same adapters, without producing them; goal: under
  2 ms per client. "additions" is a lower bound: reading the update and adding it to fp64 sums, in
  one pass over a flat tensor.

Times are wall time, unless called CPU time (of one thread).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROWS = 16  # of a client
WORDS = "the client holds a row of plain words that says how much of it is kept in memory and where"


def peak_mb() -> float:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def write_client(path: Path, number: int, rows: int) -> None:
    """Write one client's rows."""
    words = WORDS.split()
    lines = []
    for i in range(rows):
        turn = (number + i) % len(words)
        answer = " ".join(words[turn:] + words[:turn])
        row = {"instruction": f"question {i} of client {number}", "input": "", "output": answer}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """Write a Llama with random weights, two small layers unless given, and a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_only = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token="<end>", pad_token="<end>", chat_template=template
    ).save_pretrained(folder)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(letters), eos_token_id=0, bos_token_id=0, pad_token_id=0, **(tiny | sizes)
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def study_of(
    clients: int,
    rounds: int,
    folder: Path,
    *,
    rows: int = ROWS,
    sizes: dict[str, int] | None = None,
) -> Path:
    """Write a model, client rows and a configuration; return the configuration's path."""
    (folder / "data").mkdir()
    for i in range(clients):
        write_client(folder / "data" / f"client-{i:04d}.jsonl", i, rows)
    write_model(folder / "model", sizes or {})
    (folder / "config.toml").write_text(f"""
        [model]
        name = "{folder}/model"
        [data]
        clients = "{folder}/data"
        max_test_examples = 1
        max_length = 64
        [method]
        name = "dual-raw"
        [federation]
        rounds = {rounds}
        [train]
        local_epochs = 1
        [evaluation]
        max_new_tokens = 1
    """)
    return folder / "config.toml"


def memory(clients: int, quick: bool) -> dict[str, Any]:
    """Run a federation of `clients` clients; return its peak memory and its time."""
    from transformers.utils import logging

    from fedsdr.config import load_config
    from fedsdr.progress import SILENT
    from fedsdr.runs.run import run_experiment

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as name:
        config = load_config(study_of(clients, 1 if quick else 2, Path(name)))
        began = time.perf_counter()
        run_experiment(config, Path(name) / "run", SILENT)
        return {"clients": clients, "peak_mb": peak_mb(), "seconds": time.perf_counter() - began}


def model_of_135m(quick: bool) -> Any:
    """Return a random model of SmolLM2-135M's shape with rank-8 branches on q_proj and v_proj.

    With `quick`, it has a tenth of the layers and a small vocabulary.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fedsdr.models.base_model import DTYPES, choose_dtype
    from fedsdr.models.fast_path import prepare
    from fedsdr.models.two_branch import BranchedModel

    config = LlamaConfig(
        vocab_size=1024 if quick else 49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3 if quick else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    dtype = DTYPES[choose_dtype("auto", torch.device("cpu"))]
    model: Any = LlamaForCausalLM(config).to(dtype).eval()
    prepare(model.requires_grad_(False))
    return BranchedModel(model, rank=8, alpha=16, target_modules=["q_proj", "v_proj"])


def change(quick: bool) -> dict[str, Any]:
    """Return the time of switching clients, of training one client, and their ratio."""
    from fedsdr.config import LoraConfig
    from fedsdr.training.client_store import ClientState, ClientStore
    from fedsdr.training.client_update import client_update
    from fedsdr.training.local_training import ClientRows
    from fedsdr.types import ClientTask, LocalSettings, TokenRow

    model = model_of_135m(quick)
    shared, private = model.initial("R", 0), model.initial("S", 0)
    examples, length = (2, 32) if quick else (8, 160)
    tokens = tuple(range(100, 100 + length))
    half = tuple(i >= length // 2 for i in range(length))
    rows = ClientRows(tuple(TokenRow(f"{i}", tokens, half) for i in range(examples)))
    settings = LocalSettings(method="dual-raw", local_epochs=1, batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        store = ClientStore(Path(folder), LoraConfig(), "random-135m")
        store.save(1, ClientState(private=private), accepted=0)

        def once() -> None:
            kept = store.load(1)
            model.set(shared)
            model.set(kept.private)
            model.get("R")
            store.save(2, ClientState(private=model.get("S")), accepted=1)

        def train() -> None:
            client_update(ClientTask(1, "c", 0, shared, {}, settings), rows, model, store)

        train()  # warm-up
        changing = statistics.median(seconds_of(once) for _ in range(5 if quick else 30))
        training = statistics.median(seconds_of(train) for _ in range(1 if quick else 3))
    return {
        "rows": examples,
        "tokens_a_row": length,
        "change_ms": 1e3 * changing,
        "train_ms": 1e3 * training,
        "share": changing / training,
    }


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def server(quick: bool) -> list[dict[str, Any]]:
    """Return the server's milliseconds per client of one round, for every update_dtype."""
    import torch

    from fedsdr.algorithms import server_optimizer
    from fedsdr.algorithms.compression import encode
    from fedsdr.federation.round import Plan, first_state, run_round
    from fedsdr.federation.update_checks import decoded
    from fedsdr.types import ClientUpdate, LocalSettings

    torch.set_num_threads(1)
    clients = tuple(f"client-{i:04d}" for i in range(50 if quick else 1000))
    sizes = {f"R/model.layers.{n}.self_attn.{kind}_proj": out
             for n in range(30) for kind, out in (("q", 576), ("v", 192))}  # fmt: skip
    shared = {f"{name}.lora_A": torch.zeros(8, 576) for name in sizes}
    shared |= {f"{name}.lora_B": torch.zeros(out, 8) for name, out in sizes.items()}
    # Several updates in turn, so that none is still in the CPU's cache when used again.
    pool = [{n: torch.randn_like(x) for n, x in shared.items()} for _ in range(8)]
    flat = [torch.cat([x.reshape(-1) for x in update.values()]) for update in pool]
    total = flat[0].double()
    began = time.process_time()
    for i in range(len(clients)):
        total.add_(flat[i % len(flat)], alpha=8.0)
    additions = (time.process_time() - began) / len(clients)
    found = []
    for dtype in ("fp32", "bf16", "int8"):
        encoded = [encode(update, dtype) for update in pool]

        def produce(tasks: Any, encoded: Any = encoded) -> Any:
            for i, task in enumerate(tasks):
                yield decoded(ClientUpdate(task.client_id, task.round, 8, encoded[i % 8], {}), task)

        plan = Plan(0, clients, 0, 1, server_optimizer("fedavg"), LocalSettings(update_dtype=dtype))
        state = first_state(shared, plan)
        few = replace(plan, clients=clients[:10])
        run_round(state, few, produce)  # warm
        before = peak_mb()
        cpu, wall = [], []
        for _ in range(1 if quick else 3):
            cpu_began, began = time.process_time(), time.perf_counter()
            _, record = run_round(state, plan, produce)
            cpu.append(1e3 * (time.process_time() - cpu_began) / len(clients))
            wall.append(1e3 * (time.perf_counter() - began) / len(clients))
        found.append(
            {
                "update_dtype": dtype,
                "clients": len(clients),
                "cpu_ms": statistics.median(cpu),
                "wall_ms": statistics.median(wall),
                "additions_cpu_ms": 1e3 * additions,
                "kb_up": record.bytes_up / len(clients) / 1e3,
                "growth_mb": peak_mb() - before,
            }
        )
    return found


def in_own_process(part: str, *arguments: str) -> Any:
    """Run one part in a new process.

    This process imports nothing large, since its memory at the fork would count in the peak.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, *arguments],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run all parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, as a smoke test")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        parts = {"memory": lambda quick: memory(given.clients, quick)}
        parts |= {"change": change, "server": server}
        print(json.dumps(parts[given.part](given.quick)))
        return
    quick = ["--quick"] if given.quick else []
    counts = (2, 4) if given.quick else (8, 40, 400)
    figures: dict[str, Any] = {"quick": given.quick, "memory": []}
    print("| clients | peak MB | relative to the fewest | seconds per client and round |")
    print("| --: | --: | --: | --: |")
    for n in counts:
        row = in_own_process("memory", "--clients", str(n), *quick)
        figures["memory"].append(row)
        relative = row["peak_mb"] / figures["memory"][0]["peak_mb"]
        each = row["seconds"] / n / (1 if given.quick else 2)
        print(f"| {n} | {row['peak_mb']:.0f} | {relative:.3f} | {each:.3f} |", flush=True)
    row = figures["change"] = in_own_process("change", *quick)
    print(f"\nswitching clients {row['change_ms']:.1f} ms, training one ({row['rows']} rows of "
          f"{row['tokens_a_row']} tokens, two phases, one epoch) {row['train_ms']:.0f} ms: "
          f"{row['share']:.2%}\n", flush=True)  # fmt: skip
    print("| update | KB up | server, CPU ms per client | additions | wall ms | growth MB |")
    print("| :-- | --: | --: | --: | --: | --: |")
    figures["server"] = in_own_process("server", *quick)
    for row in figures["server"]:
        print(f"| {row['update_dtype']} | {row['kb_up']:.0f} | {row['cpu_ms']:.2f} | "
              f"{row['additions_cpu_ms']:.2f} | {row['wall_ms']:.2f} | "
              f"{row['growth_mb']:.1f} |")  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
