# Ends a lab when its owner is gone, however it went: the owner holds the other end of our stdin.
# Lines there: the lab's folder, the owner's pid, then NAME PID of each daemon. The folder is not an
# argument, because what names it in its arguments or environment counts as the lab's.
read -r LAB && read -r OWNER || exit 0
case $LAB in /tmp/acb-?*) ;; *) exit 1 ;; esac
trap '' INT TERM HUP QUIT PIPE
# Its own folder may be the lab's.
cd /
SLURMS=
MUNGED=
while read -r name pid; do
    case $name in munged) MUNGED=$pid ;; *) SLURMS="$pid $SLURMS" ;; esac
done

# Whether a process is the lab's: pids are used again, and a zombie is nobody.
ours() {
    [ "$1" != $$ ] && [ "$1" != "$OWNER" ] || return 1
    case $({ tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null) in *SLURM_CONF="$LAB/"*) return 0 ;; esac
    case $({ tr '\0' '\n' <"/proc/$1/cmdline"; } 2>/dev/null) in *"$LAB/run/"* | *"$LAB/spool-"*) return 0 ;; esac
    return 1
}

# Signals PIDs TERM, and KILL when they are still there after a while.
end() {
    for pid in "$@"; do ours "$pid" && kill -TERM "$pid" 2>/dev/null; done
    tries=0
    while [ $tries -lt 50 ]; do
        left=
        for pid in "$@"; do ours "$pid" && left="$left $pid"; done
        [ -z "$left" ] && return
        tries=$((tries + 1))
        sleep 0.1
    done
    for pid in $left; do kill -KILL "$pid" 2>/dev/null; done
}

# Jobs first, while there is a Slurm that can end them in order.
slurm() { SLURM_CONF="$LAB/slurm.conf" timeout 5 "$@" 2>/dev/null; }
if slurm scancel --partition=main; then
    tries=0
    while [ $tries -lt 50 ] && [ -n "$(slurm squeue --noheader)" ]; do
        tries=$((tries + 1))
        sleep 0.2
    done
fi
# shellcheck disable=SC2086  # lists of pids
end $SLURMS

others=
for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [ "$pid" != "$MUNGED" ] && ours "$pid" && others="$others $pid"
done
# shellcheck disable=SC2086
end $others $MUNGED
rm -rf "$LAB" "/dev/shm/simcuda-"*"-${LAB##*/}"*
