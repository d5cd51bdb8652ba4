# syntax=docker/dockerfile:1.7
# One image for the service, for training and for hosting models; nothing in it names an architecture (amd64, arm64).
#
#   docker build -t flowvigil .                                   the service
#   docker build -t flowvigil:sagemaker --target sagemaker .      the same for SageMaker, which wants root
#   docker run --rm --read-only -p 127.0.0.1:8080:8080 \
#     -e FLOWVIGIL__API__TOKEN="$(openssl rand -base64 24)" \
#     -e FLOWVIGIL__INGEST__LOCAL__PATHS='["/logs"]' \
#     -v /var/log/flow:/logs:ro -v flowvigil:/data flowvigil
#
# Commands use paths below the working directory alone, so that deploy/container/stages can run them without an engine.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Release, unless a rehearsal asks for something quicker.
ARG PROFILE=release
# Line tables and symbols are 200 MB that no task needs; a core file is read with the binary of the same commit.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols
# The dependencies make a layer of their own: it is built again when they change, and not with every line of the sources. Benches
# and examples (the tables in double brackets) are left out, because the image holds no files for them.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { keep = !/^\[\[/ } keep' Cargo.toml > Cargo.kept && mv Cargo.kept Cargo.toml \
    && mkdir -p src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --profile "$PROFILE" --bin flowvigil
COPY src src
COPY LICENSE ./
RUN touch src/lib.rs src/main.rs && cargo build --locked --profile "$PROFILE" --bin flowvigil \
    && built=target/"$(test "$PROFILE" = dev && echo debug || echo "$PROFILE")" \
    && mkdir -p image/usr/local/bin image/usr/share/doc/flowvigil data \
    && cp "$built"/flowvigil image/usr/local/bin/flowvigil && cp LICENSE image/usr/share/doc/flowvigil/LICENSE

# glibc, libgcc and the certificates of public authorities; no shell, no package manager. The libc is the build's own.
FROM gcr.io/distroless/cc-debian12:nonroot AS base
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="flowvigil" \
      org.opencontainers.image.description="Finds anomalies in AWS VPC flow logs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build --chown=0:0 /src/image/ /
# Where the service may write, for a set-up that keeps its state in files; on AWS nothing is written here.
COPY --from=build --chown=65532:65532 /src/data/ /data/
# Loopback inside a container is of no use to anybody; the service refuses to listen here without a token.
ENV FLOWVIGIL__API__LISTEN=0.0.0.0:8080
EXPOSE 8080
# Exec form: signals reach the service itself, so a stop drains instead of cutting off.
ENTRYPOINT ["/usr/local/bin/flowvigil"]

# SageMaker mounts /opt/ml for root and starts the image with `serve` or `train`; it asks /ping by itself.
FROM base AS sagemaker
# hadolint ignore=DL3002
USER 0:0
WORKDIR /opt/ml
HEALTHCHECK NONE

FROM base AS service
USER 65532:65532
WORKDIR /data
VOLUME /data
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/flowvigil", "healthcheck"]
CMD ["run"]
