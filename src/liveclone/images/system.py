"""What makes a plain Debian a good guest: files that are added, and services that a guest of ours has no use for.

Every entry says why. Whatever is masked can be brought back in a guest with `systemctl unmask`; a user's own packages and
files are not touched. Times are of the cold boot under emulation, where each process that systemd starts costs 0.1 to 0.3 s.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..guest import pack

HOSTNAME = "liveclone"

# On the kernel's command line, after what the user gave:
CMDLINE = (
    "console=ttyS0",
    "quiet",
    "root=/dev/vda",
    "rw",
    # The kernel tests its ciphers against known answers at each boot: 0.8 s.
    "cryptomgr.notests",
    # Without BPF as a security module systemd does not load a program into it (0.5 s, used by RestrictFileSystems= only);
    # TOMOYO, SELinux, SMACK and IPE have no policy here. The rest is Debian's list.
    "lsm=landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor",
    # One group for all: otherwise each service is a group of its own with an equal share, and whoever is put last is the
    # last of its group only (guest/priority.py).
    "noautogroup",
    # A machine has the cards that we plug, so the kernel's own names (eth0, eth1) are as predictable as any, and udev
    # does not rename a card that a clone has just been given.
    "net.ifnames=0",
)

# Services without a purpose in such a guest.
MASKED = (
    "dev-hugepages.mount",  # the system calls for huge pages and for message queues work without their file systems
    "dev-mqueue.mount",
    "getty-static.service",  # no virtual terminals: the console is ttyS0
    "modprobe@drm.service",  # logind asks for graphics; the kernel has none
    "proc-sys-fs-binfmt_misc.automount",
    "run-lock.mount",  # /run/lock becomes a plain folder of /run
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",  # no encrypted disks, nobody to ask
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-creds.socket",
    "systemd-firstboot.service",  # identity is the agent's matter
    "systemd-hibernate-clear.service",
    "systemd-networkd-wait-online.service",  # addresses are set by the agent
    "systemd-pcrextend.socket",  # no TPM
    "systemd-pcrlock.socket",
    "systemd-pcrmachine.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",  # nothing to collect: no firmware storage
    "systemd-remount-fs.service",  # our initramfs mounts the root file system for writing
    "systemd-sysext.socket",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    "systemd-udev-load-credentials.service",
)

# Timers that would catch up on missed days in every clone at once: load on the host, noise in the guest.
DISABLED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "man-db.timer",
)

# systemd's generators are processes at each boot, before anything else. Those of fstab, the serial console, old init scripts
# and rc.local stay, and whatever a package brings.
MASKED_GENERATORS = (
    "systemd-bless-boot-generator",  # boot loaders, disks that are found by their type, encryption, suspend to disk
    "systemd-cryptsetup-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-veritysetup-generator",
    "systemd-factory-reset-generator",
    "systemd-import-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",  # loads the modules of vsock, which our machines do not have
    "systemd-system-update-generator",
    "systemd-tpm2-generator",
)

_COLDPLUG = """\
# At boot only what a machine of ours has is announced to udev. Announcing everything loads drivers for the mainboard
# that QEMU imitates (SATA, SMBus, watchdog): 2 s under emulation. What is plugged in later is announced as ever.
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=all --action=add --prioritized-subsystem=block,net \
 --subsystem-match=block --subsystem-match=net --subsystem-match=virtio --subsystem-match=virtio-ports \
 --subsystem-match=input --subsystem-match=misc --subsystem-match=rtc
ExecStart=-udevadm trigger --action=add --subsystem-match=tty --sysname-match=ttyS0
"""

_HOSTS = f"""\
127.0.0.1 localhost
127.0.1.1 {HOSTNAME}
::1 localhost ip6-localhost ip6-loopback
"""

# What dpkg leaves out when more is installed: as setup.sh does for what is there.
_DPKG = """\
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
"""

_HOOKS = "/etc/liveclone/hooks.d"
AGENT = "/usr/lib/liveclone/agent.pyz"
CLIENT = "/usr/lib/python3/dist-packages/liveclone_app.py"  # where Debian's Python finds it
COMMAND = "/usr/bin/liveclone-app"  # the same file
SERVICE = "liveclone-agent.service"


@dataclass(frozen=True)
class GuestFile:
    """A file, folder (`data` None) or link of the guest; owner root."""

    path: str
    data: bytes | None = None
    permissions: int = 0o644
    link: str = ""


def list_files() -> list[GuestFile]:
    """Return what is added to every guest, besides the agent."""
    text = {
        "/etc/hostname": HOSTNAME + "\n",
        "/etc/hosts": _HOSTS,
        "/etc/fstab": "# The root file system is mounted by the initramfs; add others here.\n",
        "/etc/default/locale": "LANG=C.UTF-8\n",
        "/etc/machine-id": "",  # empty: made at the first boot, and a first boot in no other respect
        "/etc/dpkg/dpkg.cfg.d/liveclone": _DPKG,
        "/etc/systemd/system/systemd-udev-trigger.service.d/liveclone.conf": _COLDPLUG,
    }
    folders = [
        GuestFile(f"{_HOOKS}/{event}", permissions=0o755) for event in ("prepare", "cloned", "resumed")
    ]
    files = [GuestFile(path, content.encode()) for path, content in text.items()]
    masked = [f"system/{unit}" for unit in MASKED] + [
        f"system-generators/{name}" for name in MASKED_GENERATORS
    ]
    masks = [GuestFile(f"/etc/systemd/{name}", link="/dev/null") for name in masked]
    links = [
        GuestFile("/var/lib/dbus/machine-id", link="/etc/machine-id"),
        GuestFile(COMMAND, link=CLIENT),
    ]
    client = GuestFile(CLIENT, pack.CLIENT.read_bytes(), permissions=0o755)
    return [*folders, *files, client, *masks, *links]


def render_agent() -> bytes:
    """Return the agent as it is sent into a guest that nobody prepared, where it installs itself."""
    return pack.render(deflated=True)


# Where the builder's own files are while it works in the guest; gone afterwards.
BUILD = "/.liveclone"

# Run in the guest's root when packages and files are in place. The host's resolv.conf is still there, so the user's script
# can reach the network.
SETUP = f"""\
set -eu
cd /
python3 -I -S {AGENT} --precompile
systemctl --quiet enable {SERVICE} ssh.service
for unit in {" ".join(DISABLED)}; do
    systemctl --quiet disable "$unit" 2>/dev/null || true # not installed
done
# The machine boots the image's kernel; another one on the disk would only take its modules away.
kernels=$(dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' 'linux-image-*' | sed -n 's/^installed //p')
apt-mark hold $kernels >/dev/null
if [ -e {BUILD}/password ]; then chpasswd <{BUILD}/password; fi
if [ -e {BUILD}/script ]; then {BUILD}/script; fi
rm -rf {BUILD}
# Every clone would make a new one: seconds of processor time each under emulation, and ed25519 and ECDSA serve every client.
rm -f /etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_rsa_key.pub
# As dpkg.cfg.d/liveclone has it for packages that come later.
find /usr/share/doc -type f ! -name copyright -delete
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/*/LC_MESSAGES
# What must not be the same in two machines, and what is of no use.
rm -rf /var/log/journal/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
if [ ! -L /etc/resolv.conf ]; then : >/etc/resolv.conf; fi # the agent writes it
# systemd then does not build its caches (hardware, catalogue, linker, users) at the first boot: dpkg has done so.
touch /etc/.updated /var/.updated
"""
