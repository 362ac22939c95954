"""Gate a pipeline on a receipt: exit 0 if the run improved, 1 if not. Standard library only.

python examples/read_receipt.py runs/NAME
"""

import json
import sys
from pathlib import Path

receipt = json.loads((Path(sys.argv[1]) / "receipt.json").read_text())
difference = receipt["difference"]
print(f"{receipt['verdict']}: {receipt['reason']}")
print(f"{receipt['metric']}: change {difference['value']:.3g} [{difference['low']:.3g}, {difference['high']:.3g}]")
for check in receipt["checks"]:
    if check["passed"] is False:
        print(f"failed: {check['slug']} ({check['id']}): {check['detail']}  -> treeward explain {check['slug']}")
if receipt["accepted"]:
    print(f"accepted without passing: {', '.join(receipt['accepted'])}")
sys.exit(0 if receipt["verdict"] == "improved" else 1)
