package e2e

import "testing"

// TestDashboard drives the dashboard in Chromium as its readers do, with mouse
// and keyboard, in front of a real gate.
func TestDashboard(t *testing.T) {
	chromium := startChromium(t)
	t.Run("first visit", func(t *testing.T) { firstVisit(t, chromium) })
	t.Run("tasks", func(t *testing.T) { tasks(t, chromium) })
	t.Run("hostile names", func(t *testing.T) { hostile(t, chromium) })
	t.Run("readers", func(t *testing.T) { readers(t, chromium) })
}
