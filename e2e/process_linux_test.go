package e2e

import "syscall"

// dieWithParent kills Caddy when the tests are killed, as by their timeout.
var dieWithParent = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
