# syntax=docker/dockerfile:1
# The service alone: no shell, no package manager, no root. Its files are those that scripts/image-root names.
#
#     docker build --tag token-broker .

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && \
    apt-get install --yes --no-install-recommends ca-certificates && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# The same source gives the same binary: no time and no path of the build is in it.
ENV SOURCE_DATE_EPOCH=0 \
    CARGO_PROFILE_RELEASE_STRIP=symbols \
    RUSTFLAGS="--remap-path-prefix=/source=/token-broker --remap-path-prefix=/usr/local/cargo=/cargo"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --bin token-broker && \
    scripts/image-root target/release/token-broker /image

FROM scratch
COPY --from=build /image/ /
USER 65532:65532
# Bots, browsers, the platform.
EXPOSE 50051 8080 9090
ENTRYPOINT ["/usr/local/bin/token-broker"]
CMD ["serve", "--config", "/etc/token-broker/token-broker.toml"]
