"""Private keys and tokens in well-known files of users and services."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

# Pattern -> what it is. Host keys are an identity item and not here.
FILES = {
    "~/.ssh/id_*": "a private SSH key",
    "~/.aws/credentials": "AWS credentials",
    "~/.azure/*oken*": "Azure tokens",
    "~/.config/gcloud/*credentials*": "Google Cloud credentials",
    "~/.docker/config.json": "credentials of container registries",
    "~/.config/gh/hosts.yml": "a GitHub token",
    "~/.git-credentials": "credentials of git servers",
    "~/.gnupg/private-keys-v1.d": "private OpenPGP keys",
    "~/.kube/config": "credentials of Kubernetes clusters",
    "~/.netrc": "passwords for servers",
    "~/.npmrc": "a token for a package registry",
    "~/.pgpass": "passwords for PostgreSQL",
    "~/.pypirc": "a token for a package registry",
    "~/.vault-token": "a Vault token",
    "~/.config/containers/auth.json": "credentials of container registries",
    "~/.openstack/clouds.yaml": "credentials of clouds",
    "~/.config/openstack/clouds.yaml": "credentials of clouds",
    "/etc/ssl/private/*.key": "a private TLS key",
    "/etc/letsencrypt/live/*/privkey.pem": "a private TLS key",
    "/etc/wireguard/*.conf": "a private WireGuard key",
    "/etc/openvpn/*.key": "a private VPN key",
    "/etc/openvpn/*/*.key": "a private VPN key",
}

# Files that often hold settings alone -> what is in them when there is a secret too.
MARKS = {
    "~/.npmrc": "_auth",
    "~/.docker/config.json": '"auth"',
    "~/.config/containers/auth.json": '"auth"',
    "~/.pypirc": "password",
}


class SecretFiles(Check):
    name = "secret-files"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for pattern, what in FILES.items():
            for path in guest.find(pattern):
                if guest.has_content(path) and not path.endswith(".pub") and has_mark(guest, pattern, path):
                    yield finding(
                        path,
                        what,
                        "accept",
                        "each clone has it: accept that, or let a `cloned` hook replace it",
                    )


def has_mark(guest: Guest, pattern: str, path: str) -> bool:
    """Whether a file that often holds settings alone holds a secret too; True for all others."""
    return pattern not in MARKS or MARKS[pattern] in guest.read(path)


CHECK = SecretFiles
