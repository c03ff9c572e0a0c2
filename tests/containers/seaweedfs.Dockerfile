# A stand-in for chrislusf/seaweedfs where that cannot be pulled: the same program, from the wheel's `weed`. The context is its folder.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends wget
COPY weed /usr/bin/weed
ENTRYPOINT ["/usr/bin/weed"]
