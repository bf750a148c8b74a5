# The doors to the project; the work is done by cargo and by the scripts in .ci.

.PHONY: help demo build test bench clean

help:
	@echo 'make demo    a swarm of three managers on this machine, from nothing'
	@echo 'make build   target/release/forge'
	@echo 'make test    every check; PARTS="fmt unit" for some (shell fmt clippy deny build unit lab libvirt virtualbox trouble demo, and long)'
	@echo 'make bench   the speeds: ratios, side by side, in one run'
	@echo 'make clean   remove what was built here'

demo:
	@.ci/demo

build:
	@.ci/setup
	@. .ci/env && cargo build --release --locked

test:
	@.ci/test $(PARTS)

bench: build
	@tests/bench/run

clean:
	@. .ci/env && cargo clean
