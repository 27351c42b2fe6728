package e2e

import "testing"

// TestDashboard drives the dashboard in Chromium as its readers do, with mouse
// and keyboard, in front of a real gate.
func TestDashboard(t *testing.T) {
	chromium := startChromium(t)
	t.Run("first visit", func(t *testing.T) { firstVisit(t, chromium) })
	t.Run("demo", func(t *testing.T) { demo(t, chromium) })
	t.Run("tasks", func(t *testing.T) { tasks(t, chromium) })
	t.Run("hostile names", func(t *testing.T) { hostile(t, chromium) })
	t.Run("accessible", func(t *testing.T) { accessible(t, chromium) })
	t.Run("keyboard", func(t *testing.T) { keyboard(t, chromium) })
	t.Run("errors in forms", func(t *testing.T) { errorsInForms(t, chromium) })
	t.Run("large", func(t *testing.T) { large(t, chromium) })
	t.Run("readers", func(t *testing.T) { readers(t, chromium) })
}
