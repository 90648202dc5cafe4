# shellcheck shell=bash
# What scripts/lib/patroni_cluster.py needs: PostgreSQL, etcd, HAProxy, and Patroni in a virtual environment
# of its own. Sourced after scripts/lib/setup.sh, whose functions it uses.

PATRONI_VERSION=4.1.5

# The two servers are the system's, and the tests start them themselves.
need_patroni() {
    need_postgresql || return
    if ! has_patroni_servers && ! { install "etcd and HAProxy" packages_at_rest etcd-server haproxy &&
        has_patroni_servers; }; then
        skipped_tests patroni "apt could not install etcd and HAProxy"
        return 1
    fi
    need_patroni_itself
}

# Debian keeps HAProxy where only root's path leads.
has_patroni_servers() {
    has etcd && { has haproxy || [[ -x /usr/sbin/haproxy ]]; }
}

need_patroni_itself() {
    local venv=.tools/patroni
    local installed=$venv/.installed-version
    if [[ -e $installed && $(<"$installed") == "$PATRONI_VERSION" ]]; then
        return
    fi
    # Begun again, so that the file stands for a complete installation. Debian keeps what makes one in a
    # package of its own.
    if ! install "patroni environment" python3 -m venv --clear "$venv" &&
        ! { install "python3-venv" system_packages python3 python3-venv &&
            install "patroni environment" python3 -m venv --clear "$venv"; }; then
        skipped_tests patroni "python3 could not make a virtual environment"
        return 1
    fi
    if ! install "patroni $PATRONI_VERSION" "$venv/bin/python" -m pip install \
        --quiet --no-input --disable-pip-version-check "patroni[etcd3,psycopg3]==$PATRONI_VERSION"; then
        skipped_tests patroni "pip could not install it"
        return 1
    fi
    printf '%s\n' "$PATRONI_VERSION" >"$installed"
}

# packages_at_rest PACKAGE…: installs them without starting their services. Debian asks this file first,
# which a container often has; where it is present, it is left as it is.
packages_at_rest() {
    local policy=/usr/sbin/policy-rc.d ended=0
    if [[ -e $policy ]]; then
        system_packages "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | by_root tee "$policy" && by_root chmod 755 "$policy" || return
    system_packages "$@" || ended=$?
    by_root rm -f "$policy"
    return "$ended"
}

by_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo -n "$@"
    fi
}
