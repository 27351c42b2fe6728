// What the browser tests find on a page, as a reader would: by the names of
// buttons, links and fields, in the dialog that is open or else anywhere.
// It is run before the page's own scripts.
document.addEventListener('securitypolicyviolation', (e) => console.error(`the policy was violated: ${e.violatedDirective} by ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));

globalThis.e2e = (() => {
	const plain = (s) => (s || '').replace(/\s+/g, ' ').trim();
	const scope = () => [...document.querySelectorAll('dialog[open]')].at(-1) || document.body;
	const seen = (el) => el.checkVisibility({visibilityProperty: true}) && el.getClientRects().length > 0;
	const kinds = {button: 'button, summary, a.button', link: 'a[href]', field: 'input, select, textarea'};

	function called(el, name) {
		if (el.matches('input, select, textarea')) {
			return plain(el.getAttribute('aria-label')) === name || [...el.labels].some((l) => plain(l.textContent) === name || plain(l.textContent).startsWith(name + '. ') || [...l.childNodes].some((c) => plain(c.textContent) === name));
		}
		return plain(el.getAttribute('aria-label')) === name || plain(el.innerText) === name || plain(el.textContent) === name;
	}

	/** find returns what is called so; "Legend / Field" is a field of a fieldset, and "#id" any element. */
	function find(kind, name) {
		if (name.startsWith('#')) return scope().querySelector(name);
		let root = scope();
		const [legend, rest] = name.includes(' / ') ? name.split(' / ') : ['', name];
		if (legend) root = [...root.querySelectorAll('fieldset')].find((f) => plain(f.querySelector('legend').textContent) === legend);
		return root && [...root.querySelectorAll(kinds[kind])].find((el) => called(el, rest) && seen(el));
	}

	/** still waits for two frames, or as long as they would take where none are painted. */
	const still = () => new Promise((done) => {
		setTimeout(done, 50);
		requestAnimationFrame(() => requestAnimationFrame(done));
	});

	/** at returns where a click on it goes, or why it cannot be clicked. */
	async function at(kind, name) {
		const before = find(kind, name)?.getBoundingClientRect();
		await still();
		const el = find(kind, name);
		if (!el) return {problem: 'there is none'};
		if (el.disabled) return {problem: 'it is disabled'};
		const after = el.getBoundingClientRect();
		if (before?.x !== after.x || before?.y !== after.y) return {problem: 'it moves'};
		el.scrollIntoView({block: 'center', inline: 'nearest', behavior: 'instant'});
		const box = el.getClientRects()[0];
		const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
		const top = document.elementFromPoint(x, y);
		if (!top || !(el.contains(top) || top.contains(el) || [...(el.labels || [])].some((l) => l.contains(top)))) return {problem: `${top?.outerHTML.slice(0, 200)} covers it`};
		return {x, y, problem: ''};
	}

	/** put gives a field a value that cannot be typed: a choice, a date. */
	function put(name, value) {
		const el = find('field', name);
		if (!el) return 'there is none';
		if (el.tagName === 'SELECT') {
			const o = [...el.options].find((o) => plain(o.textContent) === value || (value !== '' && o.value === value));
			if (!o) return `it offers ${[...el.options].map((o) => o.textContent).join(', ')}`;
			value = o.value;
		}
		el.focus();
		el.value = value;
		el.dispatchEvent(new Event('input', {bubbles: true}));
		el.dispatchEvent(new Event('change', {bubbles: true}));
		return '';
	}

	/** wide lists what makes the page wider than the window. */
	function wide() {
		if (document.documentElement.scrollWidth <= innerWidth) return [];
		return [...document.querySelectorAll('body *')].filter((el) => el.getBoundingClientRect().right > innerWidth + 1 && !el.closest('.scroll, #nav, svg'))
			.slice(0, 5).map((el) => `${el.tagName.toLowerCase()}.${el.className} to ${Math.round(el.getBoundingClientRect().right)} of ${innerWidth}`).concat(`${document.documentElement.scrollWidth} of ${innerWidth}`);
	}

	return {
		find, at, put, wide, plain,
		text: () => plain(scope().innerText),
		all: () => plain(document.body.innerText),
		value: (name) => find('field', name)?.value ?? null,
		focus: () => ({tag: document.activeElement.tagName, name: plain(document.activeElement.getAttribute('aria-label') || document.activeElement.labels?.[0]?.textContent || document.activeElement.innerText).slice(0, 80)}),
		busy: () => document.querySelector('[aria-busy=true]') !== null || !document.querySelector('main h1, main h2'),
	};
})();
