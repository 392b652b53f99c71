"""A table of named checks: each runs by itself, a failure of one leaves the others alone."""

import sys
import traceback


class Checks:
    def __init__(self, title):
        self.title = title
        self.rows = []

    def check(self, name):
        """Decorator: runs the function now; an exception is a failure."""

        def run(function):
            try:
                function()
                self.rows.append((name, "pass", ""))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".replace("\n", " ")
                self.rows.append((name, "FAIL", reason[:300]))
                traceback.print_exc(file=sys.stderr)
            return function

        return run

    def report(self):
        print(f"\n{self.title}")
        for name, outcome, reason in self.rows:
            print(f"  {outcome:5} {name}" + (f"  ({reason})" if reason else ""))
        failed = sum(outcome == "FAIL" for _, outcome, _ in self.rows)
        print(f"{len(self.rows) - failed} passed, {failed} failed")
        return 1 if failed else 0


def raises(kind, call):
    """The exception of this class that the call raises; anything else is a failure."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")
