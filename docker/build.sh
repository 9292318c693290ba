#!/usr/bin/env bash
# Builds the usher image on a machine that reaches no image registry: the base images
# come from what the machine has (its Go toolchain, its module cache, its CA
# certificates, busybox). Where a registry is reached, "docker build -t usher ." will do.
#
#   docker/build.sh NAME [VERSION]
#
# makes these images and prints their names, one a line:
#
#   NAME:go           the Go toolchain and the modules, the Dockerfile's BUILD_IMAGE
#   NAME:build        what the Dockerfile's stage of that name has built with it
#   NAME:busybox      a BASE_IMAGE with a shell
#   NAME:latest       usher from scratch, what runs in production
#   NAME:shell        usher on busybox, to look around in
#
# SHIPPED_GOCACHE, if set, is a GOCACHE folder that the build begins with.
#
# It needs docker, go, jq, busybox (Debian: busybox-static) and ca-certificates.
set -euo pipefail

name=${1:?name the image, such as usher}
version=${2:-development}
cd "$(dirname "$0")/.."

revision=$(git rev-parse HEAD 2>/dev/null || true)
goroot=$(go env GOROOT)
modules=$(go env GOMODCACHE)/cache/download
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT

for tool in docker go jq busybox; do
	command -v "$tool" >/dev/null || { echo "docker/build.sh: $tool is missing" >&2; exit 1; }
done
if ldd "$(command -v busybox)" >/dev/null 2>&1; then
	echo "docker/build.sh: busybox must be a static one (Debian: busybox-static)" >&2
	exit 1
fi

# shell_root lays out busybox with all its applets, as a root file system.
shell_root() {
	mkdir -p "$1/bin" "$1/tmp"
	chmod 1777 "$1/tmp"
	cp "$(command -v busybox)" "$1/bin/busybox"
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
	done
}

# build_root adds the toolchain, without what compiling usher does not read, and the
# modules that go.mod names, in the form of a module proxy.
build_root() {
	shell_root "$1"
	mkdir -p "$1/usr/local/go" "$1/modules" "$1/etc/ssl/certs" "$1/root"
	cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
	tar -C "$goroot" -c --exclude=testdata --exclude='*_test.go' --exclude=src/cmd \
		bin/go pkg/tool pkg/include src VERSION go.env | tar -C "$1/usr/local/go" -x
	go mod download -json >"$staging/modules.json"
	{
		jq -r '.Info, .GoMod, .Zip' "$staging/modules.json" | sed "s|^$modules/||"
		# The build may have to look at go.mod of modules that it does not need.
		(cd "$modules" && find . -name '*.mod' -o -name '*.info')
	} | tar -C "$modules" -c --files-from=- | tar -C "$1/modules" -x
	if [ -n "${SHIPPED_GOCACHE:-}" ]; then
		mkdir -p "$1/root/.cache"
		cp -r "$SHIPPED_GOCACHE" "$1/root/.cache/go-build"
	fi
}

build_root "$staging/build"
tar -C "$staging/build" -c --owner=0 --group=0 . | docker import \
	--change 'ENV PATH=/usr/local/go/bin:/bin' \
	--change 'ENV HOME=/root' \
	--change 'ENV GOTOOLCHAIN=local' \
	--change 'ENV GOPROXY=file:///modules' \
	--change 'ENV GOSUMDB=off' \
	- "$name:go" >/dev/null
shell_root "$staging/shell"
tar -C "$staging/shell" -c --owner=0 --group=0 . | docker import --change 'ENV PATH=/bin' - "$name:busybox" >/dev/null

# Without a network: nothing may come from anywhere else.
build() {
	docker build --network none --force-rm --build-arg "BUILD_IMAGE=$name:go" \
		--build-arg "VERSION=$version" --build-arg "REVISION=$revision" "${@:2}" --tag "$1" . >&2
}
build "$name:build" --target build
build "$name:latest"
build "$name:shell" --build-arg "BASE_IMAGE=$name:busybox"

printf '%s\n' "$name:go" "$name:build" "$name:busybox" "$name:latest" "$name:shell"
