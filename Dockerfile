# Three stages: compile, assemble a root of exactly the files that the binary needs, and that root alone.
# The result has no shell and no package manager, runs as uid 65532, and needs no writable file system besides
# what is mounted for data.

ARG RUST=docker.io/library/rust:1.95-slim-bookworm
ARG DEBIAN=docker.io/library/debian:bookworm-slim

FROM ${RUST} AS build
# librdkafka is compiled from source, against Debian's OpenSSL.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ make pkg-config libssl-dev
WORKDIR /source
COPY . .
RUN cargo build --release --locked --bin outrigger \
 && install -D target/release/outrigger /out/outrigger

# The same Debian release as the compiler's image, so that the binary finds the C library it was linked against.
FROM ${DEBIAN} AS assemble
RUN dpkg-query -s libssl3 >/dev/null 2>&1 \
 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends libssl3; }
COPY --from=build /out/outrigger /root/image/usr/local/bin/outrigger
COPY proxy.yaml /root/image/etc/outrigger/proxy.yaml
COPY policies /root/image/etc/outrigger/policies
RUN set -eu; cd /root/image; \
    # The binary's libraries, at the paths where its loader looks.
    ldd usr/local/bin/outrigger | grep -o '/[^ ]*' | while read -r library; do \
        install -D -m 0755 "$library" ".$library"; \
    done; \
    # Which packages they come from, where image scanners look for it (as distroless images do).
    mkdir -p var/lib/dpkg/status.d; \
    for package in libc6 libgcc-s1 libssl3; do dpkg-query -s "$package" > "var/lib/dpkg/status.d/$package"; done; \
    # Names for the uid, and hosts before DNS.
    echo 'outrigger:x:65532:65532:outrigger:/var/lib/outrigger:/sbin/nologin' > etc/passwd; \
    echo 'outrigger:x:65532:' > etc/group; \
    echo 'hosts: files dns' > etc/nsswitch.conf; \
    cp /etc/os-release etc/os-release; \
    mkdir -p -m 1777 tmp; \
    mkdir -p dev proc sys run var/lib/outrigger; \
    chown -R 65532:65532 var/lib/outrigger; \
    # Loads every library once; `--version` needs nothing else.
    chroot . /usr/local/bin/outrigger --version

FROM scratch
COPY --from=assemble /root/image /
LABEL org.opencontainers.image.title="outrigger" \
      org.opencontainers.image.description="A data-access sidecar: tenant-aware rate limits, cache and more over localhost HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
WORKDIR /var/lib/outrigger
# No HEALTHCHECK: the pod's probes ask this port. It has health and metrics only; the API and the admin listener
# are on loopback, which a pod's containers share.
EXPOSE 7782
ENTRYPOINT ["/usr/local/bin/outrigger"]
CMD ["serve", "--config", "/etc/outrigger/proxy.yaml"]
