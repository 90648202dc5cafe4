# shellcheck shell=bash
# Installs what the tests and the lints need beside Rust. Sourced by scripts/test, scripts/soak and .ci/run, which stand in
# the repository's root and have set SELF, their own name.
#
# One function a tool: need_<tool> returns 0 when the tool can be used. Otherwise it has said why not,
# and returns 1; what that means is its caller's to say. An installed tool is not installed again.
# A tool is looked for where tests/integration/harness/tools.rs looks for it.

# shellcheck source=scripts/tools.versions
source scripts/tools.versions

say() {
    printf '%s: %s\n' "$SELF" "$*"
}

# skipped WHAT WHY
skipped() {
    say "skipped: $1, because $2"
}

# skipped_tests TOOL WHY: the tests name themselves when they run; this says why.
skipped_tests() {
    skipped "the tests that need $1${CI+ (they fail, as CI is set)}" "$2"
}

has() {
    command -v "$1" >/dev/null
}

find_tool() {
    local candidate
    for candidate in ".tools/bin/$1" "node_modules/.bin/$1"; do
        if [[ -x $candidate ]]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    command -v "$1"
}

# has_version TOOL VERSION: the tool that would be run is the pinned one.
has_version() {
    local path
    path=$(find_tool "$1") && [[ $("$path" --version 2>&1) == *[\ v]"$2" ]]
}

# install NAME COMMAND…: the command's output goes to a log, and its end is shown if it fails.
install() {
    local name=$1 log began=$SECONDS
    shift
    mkdir -p .tools/bin .tools/log
    log=".tools/log/${name%% *}.log"
    say "installing $name (log: $log)"
    if "$@" >"$log" 2>&1 </dev/null; then
        say "installed $name in $((SECONDS - began)) s"
    else
        say "could not install $name; $log ends with:"
        tail -n 15 "$log" | sed 's/^/    /'
        return 1
    fi
}

# system_packages PACKAGE…: by apt, as root, or with a sudo that asks nothing.
system_packages() {
    local as_root=(env)
    if ! has apt-get; then
        echo "this system has no apt-get"
        return 1
    fi
    if ((EUID != 0)); then
        as_root=(sudo -n env)
    fi
    "${as_root[@]}" apt-get update &&
        "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
            apt-get install --yes --no-install-recommends "$@"
}

# What nothing can be built without.
need_rust() {
    if ! has cargo; then
        say "cargo is missing: install Rust (Cargo.toml's rust-version, or later)"
        return 1
    fi
    # Rust links with it, and SQLite is compiled by it.
    if ! has cc && ! install "gcc" system_packages gcc libc6-dev; then
        say "cc is missing: install a C compiler"
        return 1
    fi
}

# The packages of package-lock.json: an authorization server, a gRPC client, buf.
need_node_packages() {
    local installed=node_modules/.installed-package-lock.json
    if cmp -s package-lock.json "$installed"; then
        return
    fi
    if ! has npm && ! { install "nodejs" system_packages nodejs npm && has npm; }; then
        skipped_tests "Node packages" "npm is not installed"
        return 1
    fi
    # oidc-provider needs what Node has from 20.19 and 22 on.
    if ! node -e 'process.exit(typeof URL.parse === "function" ? 0 : 1)'; then
        skipped_tests "Node packages" "node $(node --version) is too old; version 22 or later will do"
        return 1
    fi
    # `npm ci` empties node_modules first, so that the copy stands for a complete installation.
    if ! install "npm packages" npm ci --ignore-scripts --no-audit --no-fund; then
        skipped_tests "Node packages" "npm could not install them"
        return 1
    fi
    cp package-lock.json "$installed"
}

# What the tests run in Python, in a virtual environment of its own: another authorization server, a
# gRPC client.
need_python_packages() {
    local wanted=tests/servers/requirements.txt venv=.tools/python
    local installed=$venv/.installed-requirements.txt
    if cmp -s "$wanted" "$installed"; then
        return
    fi
    if ! has python3 && ! { install "python3" system_packages python3 python3-venv && has python3; }; then
        skipped_tests "Python packages" "python3 is not installed"
        return 1
    fi
    # Started again, so that the copy stands for a complete installation. Debian keeps what makes one in
    # a package of its own.
    if ! install "python environment" python3 -m venv --clear "$venv" &&
        ! { install "python3-venv" system_packages python3-venv &&
            install "python environment" python3 -m venv --clear "$venv"; }; then
        skipped_tests "Python packages" "python3 could not make a virtual environment"
        return 1
    fi
    if ! install "Python packages" "$venv/bin/python" -m pip install \
        --quiet --no-input --disable-pip-version-check --requirement "$wanted"; then
        skipped_tests "Python packages" "pip could not install them"
        return 1
    fi
    cp "$wanted" "$installed"
}

# The browser and its WebDriver, which must be of one version: both are the system's.
need_chromium() {
    if has chromium && has chromedriver; then
        return
    fi
    if install "chromium" system_packages chromium chromium-driver &&
        has chromium && has chromedriver; then
        return
    fi
    skipped_tests chromium "apt could not install it"
    return 1
}

need_grpcurl() {
    local why path
    if has_version grpcurl "$GRPCURL_VERSION"; then
        return
    fi
    if ! has go; then
        why="go is not installed"
    elif go_install grpcurl "$GRPCURL_VERSION" "-X main.version=v$GRPCURL_VERSION" \
        github.com/fullstorydev/grpcurl/cmd/grpcurl; then
        return
    else
        why="go could not install it"
    fi
    if path=$(find_tool grpcurl); then
        say "using $path instead of grpcurl $GRPCURL_VERSION, because $why"
        return
    fi
    skipped_tests grpcurl "$why"
    return 1
}

# go_install NAME VERSION LDFLAGS PACKAGE: into .tools/bin.
go_install() {
    install "$1 $2" env CGO_ENABLED=0 GOBIN="$PWD/.tools/bin" \
        go install -trimpath -ldflags "-s -w $3" "$4@v$2"
}

# What checks the chart. Of helm-unittest, no later version can be had by `go install`.
need_helm() {
    local helm=helm.sh/helm/v3 minor=$HELM_KUBERNETES_MINOR flags path
    flags="-X $helm/internal/version.version=v$HELM_VERSION"
    flags+=" -X $helm/pkg/chartutil.k8sVersionMajor=1 -X $helm/pkg/chartutil.k8sVersionMinor=$minor"
    flags+=" -X $helm/pkg/lint/rules.k8sVersionMajor=1 -X $helm/pkg/lint/rules.k8sVersionMinor=$minor"
    if ! has go; then
        skipped_tests helm "go is not installed"
        return 1
    fi
    { path=$(find_tool helm) && [[ $("$path" version --template '{{.Version}}') == "v$HELM_VERSION" ]]; } ||
        go_install helm "$HELM_VERSION" "$flags" "$helm/cmd/helm" || helm_is_missing || return
    { path=$(find_tool helm-unittest) && go version -m "$path" | grep -q "	v$HELM_UNITTEST_VERSION	"; } ||
        go_install helm-unittest "$HELM_UNITTEST_VERSION" "" \
            github.com/helm-unittest/helm-unittest/cmd/helm-unittest || helm_is_missing || return
    has_version helm-docs "$HELM_DOCS_VERSION" ||
        go_install helm-docs "$HELM_DOCS_VERSION" "-X main.version=$HELM_DOCS_VERSION" \
            github.com/norwoodj/helm-docs/cmd/helm-docs || helm_is_missing
}

helm_is_missing() {
    skipped_tests helm "go could not install it"
    return 1
}

# The server's binaries, which the tests start themselves; where harness/postgres.rs looks for them.
need_postgresql() {
    local why="apt could not install it"
    if has_postgresql || { install "postgresql" system_packages postgresql && has_postgresql; }; then
        return
    fi
    skipped_tests postgresql "$why"
    return 1
}

# The newest server that tests run against, beside the system's: initdb, pg_ctl and postgres, with TLS and contrib, and
# no client programs. In .tools/postgresql-18, where harness/postgres.rs looks for it.
need_postgresql18() {
    local why="mvn could not download it"
    if has_postgresql18; then
        return
    fi
    if ! has mvn && ! { install "maven" system_packages maven && has mvn; }; then
        why="mvn is not installed"
    elif ! { has python3 && has xz; } &&
        ! { install "xz-utils" system_packages python3 xz-utils && has python3 && has xz; }; then
        why="python3 or xz is not installed"
    elif install "postgresql-18 $POSTGRESQL18_VERSION" unpack_postgresql18; then
        return
    fi
    skipped_tests "postgresql 18" "$why"
    return 1
}

has_postgresql18() {
    [[ $(.tools/postgresql-18/bin/postgres --version 2>&1) == *" ${POSTGRESQL18_VERSION%.*}" ]]
}

# A jar with nothing in it but a tar archive.
unpack_postgresql18() {
    local machine folder
    case $(uname -sm) in
        "Linux x86_64") machine=linux-amd64 ;;
        "Linux aarch64") machine=linux-arm64v8 ;;
        *) echo "there is none for $(uname -sm)" && return 1 ;;
    esac
    folder=$(mktemp -d .tools/postgresql-18.XXXXXX) || return
    mvn --batch-mode --strict-checksums dependency:copy -DoutputDirectory="$PWD/$folder/jar" \
        -Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-$machine:$POSTGRESQL18_VERSION" &&
        python3 -m zipfile -e "$folder"/jar/*.jar "$folder/jar" &&
        mkdir "$folder/tree" && tar -xJf "$folder"/jar/postgres-*.txz --no-same-owner -C "$folder/tree" &&
        "$folder/tree/bin/postgres" --version &&
        rm -rf .tools/postgresql-18 && mv "$folder/tree" .tools/postgresql-18
    local ended=$?
    rm -rf "$folder"
    return "$ended"
}

# A pooler in front of the server, which the tests start themselves.
need_pgbouncer() {
    if has_pgbouncer || { install "pgbouncer" system_packages pgbouncer && has_pgbouncer; }; then
        return
    fi
    skipped_tests pgbouncer "apt could not install it"
    return 1
}

# Debian keeps it where only root's path leads.
has_pgbouncer() {
    has pgbouncer || [[ -x /usr/sbin/pgbouncer ]]
}

# What Prometheus checks metrics and rules with: taken out of its package, for to install that would start
# a server.
need_promtool() {
    if find_tool promtool >/dev/null || install "promtool" unpack_promtool; then
        return
    fi
    skipped_tests promtool "apt could not download it"
    return 1
}

unpack_promtool() {
    local folder
    folder=$(mktemp -d .tools/promtool.XXXXXX) || return
    (
        cd "$folder" &&
            { apt-get download prometheus || { apt-get update && apt-get download prometheus; }; } &&
            dpkg-deb -x prometheus_*.deb . &&
            cp usr/bin/promtool ../bin/
    )
    local ended=$?
    rm -rf "$folder"
    return "$ended"
}

# A library that gives one process another clock; where harness/tools.rs looks for it.
need_faketime() {
    local why="apt could not install it"
    if has_faketime || { install "faketime" system_packages faketime && has_faketime; }; then
        return
    fi
    skipped_tests faketime "$why"
    return 1
}

has_faketime() {
    compgen -G "/usr/lib/*/faketime/libfaketime.so.1" >/dev/null
}

has_postgresql() {
    has initdb && has postgres || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null
}

# A debug build, which takes a minute or two; the release build, fully link-time optimised, takes many.
need_cargo_deny() {
    if has_version cargo-deny "$CARGO_DENY_VERSION"; then
        return
    fi
    install "cargo-deny $CARGO_DENY_VERSION" env CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install cargo-deny --version "=$CARGO_DENY_VERSION" --locked --debug --root .tools
}

# Counts the instructions of a call.
need_instruction_counts() {
    if ! has valgrind; then
        install "valgrind" system_packages valgrind libc6-dbg || return 1
    fi
    if ! has_version gungraun-runner "$GUNGRAUN_VERSION"; then
        install "gungraun-runner $GUNGRAUN_VERSION" env CARGO_PROFILE_DEV_DEBUG=0 \
            cargo install gungraun-runner --version "=$GUNGRAUN_VERSION" --locked --debug \
            --root .tools || return 1
    fi
    GUNGRAUN_RUNNER=$(realpath "$(find_tool gungraun-runner)")
    export GUNGRAUN_RUNNER
}
