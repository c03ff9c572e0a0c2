"""What `physion launch` finds before it needs a cluster."""

import pytest
import yaml

from tests.kubernetes.test_manifest import MANIFEST
