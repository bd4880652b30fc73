"""Tools of a study, which the product never imports: compare, diagnose, judge, suites."""
