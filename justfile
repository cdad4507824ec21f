# Short names for what CI (.ci/run) and the README call. Nothing needs `just`: each recipe is the plain command.

set positional-arguments

# List the recipes
default:
    @just --list --unsorted

# Everything that CI runs
ci:
    .ci/run

# Formatting and lints, as errors
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Format
fmt:
    cargo fmt --all

# All tests, on a private RabbitMQ and Redis: just test [ARGS of cargo test]
test *args:
    tests/services run -- cargo test --workspace --locked --features failpoints "$@"

# The tests that need no server
unit *args:
    cargo test --workspace --lib --bins --locked "$@"

# The documentation, warnings as errors
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# The figures of the README
bench *args:
    tests/bench "$@"

# The JSON Schemas in docs/schemas/ from the Rust types
schemas:
    cargo run --locked -p pixfleet-cli -- schemas docs/schemas

# The demo: 36 calls at 4 a second through producer, queue, 2 workers, limiter and results: just demo [--engine rabbitmq]
demo *args:
    cargo build --release --locked -p pixfleet-cli
    tests/services run -- target/release/pixfleet demo "$@"

# Private RabbitMQ and Redis: just services start|stop|env|status|...
services *args:
    tests/services "$@"

# Licences, bans, sources and advisories of the dependencies
deny:
    cargo deny --locked check

# The container image, built in a container
image tag="pixfleet":
    DOCKER_BUILDKIT=1 docker build -f deploy/Dockerfile -t "$1" .

# The container image, from the binary that cargo builds here
image-prebuilt tag="pixfleet":
    cargo build --release --locked -p pixfleet-cli
    DOCKER_BUILDKIT=1 docker build -f deploy/Dockerfile --build-arg BINARY=prebuilt -t "$1" .
