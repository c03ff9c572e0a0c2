"""Makes the Secret of an S3 server in the cluster, with credentials that nobody has seen: k8s/components/s3 runs this.

python -m physion.kubernetes.credentials NAME
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main() -> int:
    """Create the Secret named on the command line, in the namespace of this pod, unless it is there."""
    from kubernetes import client, config

    config.load_incluster_config()
    name, namespace = sys.argv[1], (ACCOUNT / "namespace").read_text()
    # Letters and digits only: what some clients and shells take apart cannot occur.
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data=keys)
    try:
        client.CoreV1Api().create_namespaced_secret(namespace, secret)
    except client.ApiException as error:
        if error.status != 409:
            print(f"error: Secret {name}: {error.status} {error.reason}", file=sys.stderr)
            return 75
        print(f"Secret {name} is there already")
        return 0
    print(f"made Secret {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
