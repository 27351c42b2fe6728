package e2e

import "testing"

// TestDashboard drives the dashboard in Chromium as its readers do, with mouse
// and keyboard, in front of a real gate.
func TestDashboard(t *testing.T) {
	chromium := startChromium(t)
	t.Run("first visit", func(t *testing.T) { firstVisit(t, chromium) })
}
