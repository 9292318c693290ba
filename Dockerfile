# The usher image: one static binary, CA certificates, a user that is not root, no shell.
#
#   docker build -t usher .
#
# Both base images can be named, for a mirror or a machine that reaches no registry
# (docker/build.sh makes them from what such a machine has). A BASE_IMAGE with a shell
# gives an image to look around in, and one where the demo runs its connection script.
# Nothing here needs BuildKit.
ARG BUILD_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=scratch

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# A layer of its own: it is built again only when a module changes.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=development
# timetzdata puts the time zones into the binary (450 KB); zones that are mounted at
# /usr/share/zoneinfo go first. Nothing is inlined (-l) in the packages of others and in the
# simulator, of which none is computed with for long: that makes the binary smaller by 0.9 MB.
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags timetzdata \
    -gcflags=github.com/...=-l -gcflags=go.yaml.in/...=-l -gcflags=example.org/usher/simulator=-l \
    -ldflags "-s -w -X main.version=${VERSION}" -o /out/usher ./cmd/usher

FROM ${BASE_IMAGE}
ARG VERSION=development
ARG REVISION=
LABEL org.opencontainers.image.title="usher" \
      org.opencontainers.image.description="Sees instances out of an auto-scaling group without a failed request" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY docker/passwd /etc/passwd
COPY docker/group /etc/group
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/usher /usher
# By number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
# Inside a container loopback can be reached by nobody, not even by a kubelet's probe.
# This goes before http of usher.yaml; the health check expects the port.
ENV USHER_HTTP=0.0.0.0:9090
EXPOSE 9090
# SIGTERM hands the work back within shutdown_grace (25 s): stop with --stop-timeout 30.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/usher", "health"]
ENTRYPOINT ["/usher"]
CMD ["run", "--config", "/etc/usher"]
