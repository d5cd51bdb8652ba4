# Builds for the machine it runs on, x86-64 or ARM64 (Graviton): nothing in it names an architecture.
#   docker build -t flowvigil .
#   docker run --rm -p 127.0.0.1:8080:8080 -v flowvigil:/data flowvigil
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin flowvigil

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /data flowvigil && install -d -o flowvigil -g flowvigil /data
COPY --from=build /src/target/release/flowvigil /usr/local/bin/flowvigil
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# Exec form: signals reach the service itself, so a stop drains instead of cutting off.
ENTRYPOINT ["/usr/local/bin/flowvigil"]
CMD ["run"]
