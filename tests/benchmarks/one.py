"""One measurement in a process of its own: request in, answer out, as JSON."""

import json
import sys

from tests.benchmarks import harness, rows, scaling


def main():
    request = json.loads(sys.argv[1])
    if request.get("rates"):
        answer = harness.machine_rates()
    elif "profile" in request:
        answer = harness.profile(rows.ROWS[request["profile"]])
    elif "sweep" in request:
        answer = [scaling.point(request["sweep"], x) for x in request["values"]]
    else:
        answer = harness.measure_side(rows.ROWS[request["row"]], request["side"], request["size"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
