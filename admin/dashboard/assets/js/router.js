// The address bar holds everything that is looked at: #/keys?q=… can be
// shared, and the browser's back button works.

const routes = [];
let current = null;
let shown = null;
let leave = () => true;

/** route shows view for paths like "keys/:id". */
export function route(pattern, title, view) {
	routes.push({segments: pattern.split('/').filter(Boolean), title, view});
}

/** onLeave asks fn, which returns whether the page may be left. */
export function onLeave(fn) {
	leave = fn;
}

/** here is where we are: {path: […], query: URLSearchParams}. */
export function here() {
	const [path, query] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s);
	return {path: path.split('/').filter(Boolean).map(decode), query: new URLSearchParams(query || '')};
}

function decode(segment) {
	try {
		return decodeURIComponent(segment);
	} catch {
		return segment;
	}
}

/** link writes an address: link(['keys', id], {range: 'day'}). */
export function link(path, query) {
	const q = query instanceof URLSearchParams ? query : new URLSearchParams(Object.entries(query || {}).filter(([, v]) => v !== '' && v !== null && v !== undefined));
	const text = q.toString();
	return '#/' + path.map(encodeURIComponent).join('/') + (text ? '?' + text : '');
}

export function go(path, query) {
	location.hash = link(path, query);
}

/** adjust changes parameters of the address; with replace, without a step back. */
export function adjust(changes, {replace = false} = {}) {
	const {path, query} = here();
	for (const [name, value] of Object.entries(changes)) {
		if (value === '' || value === null || value === undefined) query.delete(name);
		else query.set(name, value);
	}
	const to = link(path, query);
	if (to === location.hash) return;
	if (!replace) {
		location.hash = to;
		return;
	}
	history.replaceState(history.state, '', to);
	show();
}

/** start shows what the address says, now and whenever it changes. */
export function start(main) {
	addEventListener('hashchange', () => {
		if (shown !== null && shown !== location.hash && !leave()) {
			history.pushState(null, '', shown);
			return;
		}
		show(main);
	});
	show(main);
}

let root = null;

/** again shows the current view anew, as after a change. */
export function again() {
	shown = null;
	show();
}

function find(path) {
	for (const r of routes) {
		if (r.segments.length !== path.length) continue;
		const params = {};
		if (r.segments.every((s, i) => (s[0] === ':' ? (params[s.slice(1)] = path[i], true) : s === path[i]))) return {...r, params};
	}
	return null;
}

function show(main) {
	root ??= main;
	const {path, query} = here();
	const before = shown;
	shown = location.hash || '#/';
	const found = find(path) || {view: routes[0].view, title: routes[0].title, params: {}, unknown: true};
	const id = JSON.stringify([found.segments, found.params]);
	for (const a of document.querySelectorAll('#nav a')) {
		const is = (path[0] || '') === a.getAttribute('href').slice(2);
		if (is) a.setAttribute('aria-current', 'page');
		else a.removeAttribute('aria-current');
	}
	if (current && current.id === id && before !== null) {
		current.update?.(query);
		return;
	}
	current?.abort.abort();
	const abort = new AbortController();
	setTitle(found.title);
	const made = found.view({params: found.params, query, signal: abort.signal});
	current = {id, abort, update: made.update};
	root.replaceChildren(made.el);
	if (before !== null) {
		scrollTo(0, 0);
		root.focus({preventScroll: true});
	}
}

/** setTitle names the page in the browser's history and tabs. */
export function setTitle(title) {
	document.title = title ? `${title} · LLM quota` : 'LLM quota';
}
