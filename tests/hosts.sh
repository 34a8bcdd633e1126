#!/bin/sh
# hosts.sh [mpirun|srun] - what needs two hosts, by hand and not in CI: makes a Debian system as
# fresh_machine.sh does, in it two hosts with names, network, shared memory and /tmp of their
# own, and runs over both what the README says of `mpirun`, then of `srun`, under Slurm.
#
# Needs what fresh_machine.sh needs, and takes its environment (KEEP=DIR saves the installing).
# Nothing of the two hosts is seen outside, or outlives them.
set -eu

if [ "${1-}" != inside ]; then
  exec sh "$(dirname "$(readlink -f "$0")")/fresh_machine.sh" './lumoe -e ""' \
    '{ command -v slurmd && command -v ip; } >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge iproute2 >build/hosts.log 2>&1' \
    "unshare --pid --fork --kill-child --mount-proc --mount --propagation unchanged --uts --net --ipc \
      sh tests/hosts.sh inside ${1:-mpirun srun}"
fi
shift

# ---- Two hosts: alpha, which is here, and beta -------------------------------------------------

hostname alpha
printf '127.0.0.1 localhost\n10.9.0.1 alpha\n10.9.0.2 beta\n' >/etc/hosts
unshare --mount --propagation unchanged --uts --net --ipc sleep infinity &
beta=$!
at_beta() { nsenter -t $beta -m -u -n -i -r -w "$@"; }
until [ "$(readlink /proc/self/ns/net)" != "$(readlink /proc/$beta/ns/net)" ]; do sleep 0.1; done
ip link add eth0 type veth peer name eth0 netns $beta
network() { ip link set lo up && ip addr add "$1"/24 dev eth0 && ip link set eth0 up; }
network 10.9.0.1
at_beta sh -c "hostname beta && mount -t tmpfs tmp /tmp && mount -t tmpfs shm /dev/shm
  ip link set lo up && ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up"
mount -t tmpfs tmp /tmp # after beta has begun: each has one
mount -t tmpfs shm /dev/shm

# What mpirun takes for ssh: `remote HOST COMMAND`.
remote=/run/remote
printf '#!/bin/sh\nshift\nexec nsenter -t %d -m -u -n -i -r -w sh -c "$*"\n' $beta >$remote
chmod +x $remote

# ---- Checks -----------------------------------------------------------------------------------

set +e # a check that fails is counted
failures=0
work=$PWD/build/hosts # on both hosts, as a network's file system would be
rm -rf "$work"
mkdir -p "$work/text"
said=$work/said
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
program=$PWD/build/bin/lumoe

verdict() { # WHAT: how the last command did it
  if [ $? = 0 ]; then echo "ok    $1"; else
    echo "WRONG $1"
    sed 's/^/      | /' "$said" | tail -n 20
    failures=$((failures + 1))
  fi
}
says() { grep -q -- "$1" "$said"; }
since() { # SECONDS: that at most, since rank 3 did what FAIL or DIE say
  echo "$(($(date +%s) - $(cat "$work/when"))) s" >>"$said"
  [ $(($(date +%s) - $(cat "$work/when"))) -le "$1" ]
}

sed -n '1,576p' tests/fixtures/bible_en_es.tsv >"$work/text/es.tsv"
sed -n '577,$p' tests/fixtures/bible_en_es.tsv >"$work/text/test.es.tsv"
# A small training; its words for translate.lua.
training() { # NAME MORE...
  name=$1
  shift
  echo "recipes/translate.lua --data $work/text --data-dir $work/data --out $work/$name --langs es --vocab 500 \
    --dim 32 --heads 2 --hidden 48 --encoder-layers 2 --decoder-layers 2 --experts 4 --top-k 2 --noise 1 --capacity 1 \
    --batch 400 --precision f32 --warmup 10 --log-every 1 --max-pieces 96 --directions both --schedule inverse_sqrt \
    --no-eval $*"
}
# Whether the losses of the training NAME are those of one process, as far as both go.
as_alone() {
  "$program" -e "
    local json = require 'cjson'
    local function losses(name)
      local list = {}
      for line in io.lines('$work/' .. name .. '/metrics.jsonl') do list[#list + 1] = json.decode(line).loss end
      return list
    end
    local alone, many = losses 'alone', losses '$1'
    assert(#many >= 10, 'too few steps')
    for i = 1, math.min(#alone, #many) do
      assert(math.abs(alone[i] - many[i]) < 1e-4 * alone[i], ('step %d: %g, %g'):format(i, alone[i], many[i]))
    end" >>"$said" 2>&1
}
WHO='local dist = require("lumoe").dist; print(("rank %d of %d on %d"):format(dist.rank(), dist.world_size(), dist.host(dist.rank())))'
AT_3="local dist = require('lumoe').dist; dist.barrier(); if dist.rank() == 3 then os.execute 'date +%s >$work/when'"
FAIL="$AT_3 error 'deliberate' end; dist.barrier()"
DIE="$AT_3 require('posix.signal').kill(require('posix.unistd').getpid(), 9) end; dist.barrier()"

# What every launcher must do; "$@" starts the program given after it with four ranks, two on each host.
common() {
  "$@" "$program" -e "$WHO" >"$said" 2>&1 &&
    says 'rank 0 of 4 on 0' && says 'rank 1 of 4 on 0' && says 'rank 2 of 4 on 1' && says 'rank 3 of 4 on 1'
  verdict "$1: four ranks are one group, and know who shares a host"

  "$@" "$program" recipes/exchange.lua --routing random --json "$work/real.json" >"$said" 2>&1 &&
    cmp "$work/real.json" "$work/pretended.json" >>"$said" 2>&1
  verdict "$1: each exchange has the bytes and messages between hosts of LUMOE_HOSTS=2,2"

  "$@" "$program" $(training "$1" --steps 15 --ep 2 --tp 2) >"$said" 2>&1 && as_alone "$1"
  verdict "$1: a training's losses, --ep 2 --tp 2, are those of one process"

  ! "$@" "$program" -e "$FAIL" >"$said" 2>&1 && since 5 && says 'rank 3.*deliberate'
  verdict "$1: an error of rank 3, on the other host, is said and ends the job within 5 s"
}

"$program" $(training alone --steps 15) >"$said" 2>&1
verdict 'one process trains'
LUMOE_HOSTS=2,2 mpirun -np 4 --oversubscribe "$program" recipes/exchange.lua --routing random \
  --json "$work/pretended.json" >"$said" 2>&1
verdict 'exchanges, on pretended hosts'

# ---- mpirun -----------------------------------------------------------------------------------

over_mpirun() {
  flags="--host alpha:2,beta:2 --mca plm_rsh_agent $remote --oversubscribe"
  common mpirun $flags -np 4

  # What the network's counters say, both ways, beside ours.
  carried() { awk '$1 == "eth0:" { print $2 + $10 }' /proc/net/dev; }
  before=$(carried)
  mpirun $flags -np 4 "$program" recipes/exchange.lua --routing random --tokens 1024 --dim 256 \
    --json "$work/large.json" >"$said" 2>&1 &&
    "$program" -e "
      local counted = 0
      for _, row in ipairs(require 'cjson'.decode(require 'pl.file'.read '$work/large.json')) do
        counted = counted + row.host_bytes
      end
      local share = ($(carried) - $before) / counted
      print(('%.1f MB counted; the network carried %.3f times that'):format(counted / 1e6, share))
      assert(share > 1 and share < 1.1, 'that is not the same')" >>"$said" 2>&1
  verdict 'mpirun: bytes between hosts are what the network carried, within a tenth'

  ! mpirun $flags -np 4 "$program" -e "$DIE" >"$said" 2>&1 && since 5 && says 'rank 3.*signal 9'
  verdict 'mpirun: the death of a rank on the other host ends the job within 5 s'
}

# ---- srun -------------------------------------------------------------------------------------

start_slurm() {
  rm -rf /var/spool/slurmctld /var/spool/slurmd.* # of a cluster before
  mkdir -p /etc/slurm /etc/munge /run/munge /var/spool/slurmctld
  [ -s /etc/munge/munge.key ] || head -c 1024 /dev/urandom >/etc/munge/munge.key
  chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
  chmod 400 /etc/munge/munge.key
  cat >/etc/slurm/slurm.conf <<END
ClusterName=two
SlurmctldHost=alpha
SlurmUser=root
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd.%n
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=20
NodeName=alpha,beta CPUs=4
PartitionName=all Nodes=ALL Default=YES
END
  runuser -u munge munged
  slurmctld
  slurmd -N alpha
  at_beta slurmd -N beta
  for _ in $(seq 30); do # sinfo waits for a slurmctld that is not there
    [ "$(timeout 5 sinfo -h -t idle -o %D)" != 2 ] || break
    sleep 0.5
  done
  cat "$work"/slurm*.log >"$said"
  [ "$(timeout 5 sinfo -h -t idle -o %D)" = 2 ]
  verdict 'Slurm has two idle nodes'
  [ $failures = 0 ] || exit 1 # srun would wait for ever
}

steps() { cat "$work/$1/metrics.jsonl" 2>/dev/null | wc -l; }

over_srun() {
  start_slurm
  common srun --mpi=pmix -N 2 --ntasks-per-node 2

  ! srun -n 2 "$program" -e "$WHO" >"$said" 2>&1 && says 'use srun --mpi=pmix'
  verdict 'srun: without PMI, what is missing is said'

  srun --mpi=pmix -N 2 --ntasks-per-node 2 "$program" $(training stopped --steps 100000 --ep 2) >"$said" 2>&1 &
  job=$!
  while [ "$(steps stopped)" -lt 20 ] && kill -0 $job 2>/dev/null; do sleep 0.2; done
  scancel --signal=TERM "$(squeue -h -o %A)"
  wait $job && says 'stopped at step [0-9]*; go on with: srun --mpi=pmix -n 4 lumoe '
  verdict 'srun: scancel --signal=TERM: it saves, stops and says how to go on'

  at=$(sed -n 's/.*stopped at step \([0-9]*\);.*/\1/p' "$said" | head -n 1)
  again=$(sed -n 's/.*go on with: srun --mpi=pmix -n 4 lumoe //p' "$said" | head -n 1)
  again=$(printf '%s' "$again" | sed "s/--steps[ =]100000/--steps $((at + 5))/")
  eval "srun --mpi=pmix -N 2 --ntasks-per-node 2 '$program' $again" >"$said" 2>&1 && as_alone stopped &&
    [ "$(steps stopped)" = $((at + 5)) ]
  verdict 'srun: and with that it goes on'

  srun --mpi=pmix --time 1 -N 2 --ntasks-per-node 2 "$program" $(training timed --steps 100000 --ep 2) >"$said" 2>&1 || true
  says 'stopped at step [0-9]*; go on with: ' # srun itself says that the time was over, and ends with that
  verdict 'srun: at the time limit too'
}

for launcher; do "over_$launcher"; done
echo "$failures checks failed"
exit $((failures > 0))
