"""Makes the Secret of an S3 server in the cluster, with credentials that nobody has seen: k8s/components/s3 runs this.

python -m physion.kubernetes.credentials NAME
"""

from __future__ import annotations

import secrets
import sys

from physion.errors import PhysionError
from physion.kubernetes.cluster import Cluster, Conflict


def main() -> int:
    """Create the Secret named on the command line, in the namespace of this pod, unless it is there."""
    name = sys.argv[1]
    # Letters and digits only: what some clients and shells take apart cannot occur.
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    try:
        Cluster().create("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys})
    except Conflict:
        print(f"Secret {name} is there already")
    except PhysionError as error:
        print(f"error: Secret {name}: {error}", file=sys.stderr)
        return error.exit_code
    else:
        print(f"made Secret {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
