#!/bin/sh
# fresh_machine.sh [COMMAND...] - a new user's first minutes, by hand and not in CI: makes
# a minimal Debian with debootstrap, puts what git tracks of this tree into it, and
# runs the README's two commands there (or the COMMANDs given, in the tree).
#
# Needs root, debootstrap and the network. Environment:
#   SUITE   bookworm
#   MIRROR  what this machine's apt uses
#   KEEP    a folder to keep the system in; else it is made anew and removed
#   USER_NAME=someone  run as a user of that name with sudo instead of as root
set -eu
tree=$(dirname "$(dirname "$(readlink -f "$0")")")
suite=${SUITE:-bookworm}
[ "$(id -u)" = 0 ] || { echo "fresh_machine.sh: run it as root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "fresh_machine.sh: apt-get install debootstrap" >&2; exit 1; }
[ $# -gt 0 ] || set -- './lumoe test' './lumoe recipes/translate.lua'

# The mirror and the settings of this machine's apt also serve the new one.
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 2>/dev/null | head -n 1)}
mirror=${mirror:-$(apt-cache policy | sed -n 's/^ *[0-9]* \(http[^ ]*\) .*/\1/p' | head -n 1)}

system=${KEEP:-$(mktemp -d)}
mounted=
cleanup() {
  for place in $mounted; do umount -lR "$system/$place" || true; done
  [ -n "${KEEP-}" ] || rm -rf --one-file-system "$system"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ ! -e "$system/etc/debian_version" ]; then
  echo "== debootstrap $suite from $mirror"
  debootstrap --variant=minbase "$suite" "$system" "$mirror" >"$system.log" 2>&1 ||
    { tail -n 20 "$system.log"; exit 1; }
fi
for place in proc dev sys; do
  mount --rbind "/$place" "$system/$place"
  mounted="$place $mounted"
  mount --make-rslave "$system/$place" # unmounting it leaves our own alone
done
cp /etc/resolv.conf "$system/etc/" 2>/dev/null || true
# As an installer writes it: each rank asks for this host's name, and waits 5 s for a network that does not know it.
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$system/etc/hosts"
cp -r /etc/apt/apt.conf.d/. "$system/etc/apt/apt.conf.d/"
[ ! -d /etc/ssl/certs ] || { mkdir -p "$system/etc/ssl"; cp -rL /etc/ssl/certs "$system/etc/ssl/"; }

mkdir -p "$system/srv/lumoe"
git -C "$tree" ls-files -z | tar -C "$tree" --null -T - -cf - | tar -C "$system/srv/lumoe" -xf -

user=${USER_NAME:-root}
if [ "$user" != root ]; then
  chroot "$system" sh -c "apt-get update && apt-get install -y sudo" >/dev/null 2>&1
  chroot "$system" id "$user" >/dev/null 2>&1 || chroot "$system" useradd -m "$user"
  echo "$user ALL=(ALL) NOPASSWD: ALL" >"$system/etc/sudoers.d/$user"
  chroot "$system" chown -R "$user" /srv/lumoe
fi

for command; do
  echo "== $command"
  started=$(date +%s)
  chroot "$system" su - "$user" -c "cd /srv/lumoe && $command"
  echo "== done in $(($(date +%s) - started)) s: $command"
done
