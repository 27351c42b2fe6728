# build: Caddy with this module, by xcaddy.   run: that, with Caddyfile.example.
# test, lint, bench, fuzz, corpus: as they say.   chaos: what test does to a running gate, for long.
# simulate: new lives of the ledger under crashes, power losses and clock steps.

GO      ?= go
CADDY    = build/caddy
MODULE   = github.com/llm-quota/caddy-llm-quota
CADDY_V  = v2.11.9
FUZZTIME ?= 20s
SIM_DURATION ?= 5m
ROUNDS   ?= 50
SOURCES  = $(shell find . -name '*.go' -not -name '*_test.go' -not -path './e2e/*' -not -path './build/*') go.mod go.sum

.PHONY: run test chaos simulate lint bench fuzz corpus build clean

build: $(CADDY)

$(CADDY): $(SOURCES)
	@mkdir -p build
	$(GO) tool xcaddy build $(CADDY_V) --output $@ --with $(MODULE)@v0.0.0=.

run: $(CADDY)
	@echo "gate:       http://localhost:8080   (demo key: lq-demo-key-for-local-use)"
	@echo "dashboard:  http://localhost:8080/llm-quota/"
	@echo "admin API:  http://localhost:2019/llm_quota/status"
	XDG_DATA_HOME=$(CURDIR)/build/data $(CADDY) run --config Caddyfile.example --adapter caddyfile

test:
	$(GO) vet ./...
	$(GO) test -race -shuffle=on -timeout 15m ./...
	cd e2e && $(GO) test -race -shuffle=on -timeout 15m ./...

simulate:
	$(if $(wildcard /dev/shm/.),TMPDIR=/dev/shm) SIM_DURATION=$(SIM_DURATION) $(GO) test -count=1 -run TestSimulation -v -timeout 0 ./quota/ledger

chaos:
	cd e2e && CHAOS=$(ROUNDS) $(GO) test -count=1 -run 'TestKill|TestChaos' -timeout 60m

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "not gofmt'ed"; exit 1; }
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	.ci/lint

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./limiter ./quota/... ./dialect ./store/... ./admin
	cd e2e && BENCH=1 $(GO) test -count=1 -run TestOverhead -v -timeout 20m .

fuzz:
	@for target in $$(grep -rHoE '^func Fuzz[A-Za-z0-9]+' --include='*_test.go' . | sed 's,^\./,,; s/:func /:/'); do \
		dir=$$(dirname $${target%%:*}); name=$${target##*:}; \
		echo "$$dir $$name"; $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) ./$$dir || exit 1; \
	done

corpus:
	$(GO) test -count=1 -run TestCorpus -v ./dialect .

clean:
	rm -rf build
