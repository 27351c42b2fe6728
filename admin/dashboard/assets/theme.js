// Sets the theme before anything is painted. It is the reader's choice, or
// that of the system.
(() => {
	try {
		const theme = localStorage.getItem('llm-quota-theme');
		if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
	} catch { /* storage may be forbidden: the system's theme it is */ }
})();
