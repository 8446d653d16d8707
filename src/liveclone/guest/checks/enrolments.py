"""Memberships that must not be doubled: a second machine with the same one looks like the first, or breaks it."""

from __future__ import annotations

from . import Check, Guest, finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from . import Finding

# Pattern -> what it is, what to do in a clone
FILES = {
    "/etc/krb5.keytab": ("a Kerberos keytab", "join the realm anew (realm join, kadmin ktadd)"),
    "/etc/ipa/default.conf": (
        "a member of an IPA domain",
        "ipa-client-install --uninstall before, join in the clone",
    ),
    "/var/lib/sss/secrets": ("SSSD's secrets of a domain", "leave the domain before, join it in the clone"),
    "/var/lib/samba/private/secrets.tdb": (
        "a machine account in a Windows domain",
        "net ads leave before, join in the clone",
    ),
    "/etc/puppetlabs/puppet/ssl/private_keys/*.pem": (
        "a Puppet certificate",
        "puppet ssl clean, then request a new one",
    ),
    "/var/lib/puppet/ssl/private_keys/*.pem": (
        "a Puppet certificate",
        "puppet ssl clean, then request a new one",
    ),
    "/etc/salt/pki/minion/minion.pem": (
        "a Salt minion's key",
        "remove /etc/salt/pki/minion and /etc/salt/minion_id",
    ),
    "/etc/chef/client.pem": ("a Chef client's key", "remove it, then register anew"),
    "/etc/pki/consumer/key.pem": (
        "a Red Hat subscription",
        "subscription-manager clean, then register anew",
    ),
    "/etc/sysconfig/rhn/systemid": ("an RHN registration", "remove it, then register anew"),
    "/var/lib/ubuntu-advantage/private": (
        "an Ubuntu Pro attachment",
        "pro detach before, attach in the clone",
    ),
    "/var/lib/kubelet/pki/kubelet-client-current.pem": (
        "a Kubernetes node",
        "kubeadm reset, then join anew",
    ),
    "/var/lib/etcd/member": ("an etcd member", "remove the data, then join as a new member"),
    "/opt/consul/node-id": ("a Consul node", "remove node-id before the agent starts"),
    "/var/lib/consul/node-id": ("a Consul node", "remove node-id before the agent starts"),
    "/var/lib/nomad/client/client-id": ("a Nomad client", "remove client-id before the agent starts"),
    "/var/lib/docker/swarm/certificates/swarm-node.key": (
        "a node of a Docker swarm",
        "docker swarm leave, then join anew",
    ),
    "/var/lib/tailscale/tailscaled.state": ("a Tailscale node", "tailscale logout before, up in the clone"),
    "/var/lib/zerotier-one/identity.secret": ("a ZeroTier node", "remove identity.*, then restart it"),
    "/etc/teleport/host_uuid": ("a Teleport node", "remove its data folder, then join anew"),
}


class Enrolments(Check):
    name = "enrolments"

    def look(self, guest: Guest) -> Iterator[Finding]:
        for pattern, (what, cure) in FILES.items():
            for path in guest.find(pattern):
                if guest.has_content(path):
                    yield finding(path, what, "refuse", f"a clone must not have the same: {cure}")


CHECK = Enrolments
