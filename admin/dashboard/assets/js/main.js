// The frame: what stands around every view.

import {getOr} from './api.js';
import {dialog, isOpen, mayLeave, problem} from './dialog.js';
import {h, replace} from './dom.js';
import {ago, bytes, exact, many, when} from './format.js';
import {again, go, onLeave, route, start} from './router.js';
import {loadSession, online, onEvent, onLive, session, watch} from './state.js';
import {groupPage} from './views/group.js';
import {groupsPage} from './views/groups.js';
import {keyPage} from './views/key.js';
import {keys} from './views/keys.js';
import {alerts, audit} from './views/lists.js';
import {overview} from './views/overview.js';

const main = document.getElementById('main');

route('', 'Overview', overview);
route('keys', 'Keys', keys);
route('keys/:id', 'Key', keyPage);
route('groups', 'Groups', groupsPage);
route('groups/:id', 'Group', groupPage);
route('alerts', 'Alerts', alerts);
route('audit', 'Audit', audit);

// The theme.

const themes = ['system', 'light', 'dark'];
const signs = {system: '◐', light: '☀', dark: '☾'};
const themeButton = document.getElementById('theme');
let theme = document.documentElement.dataset.theme || 'system';

function showTheme() {
	themeButton.textContent = signs[theme];
	themeButton.title = `Theme: ${theme} (t)`;
	themeButton.setAttribute('aria-label', `Theme: ${theme}`);
}

function nextTheme() {
	theme = themes[(themes.indexOf(theme) + 1) % themes.length];
	if (theme === 'system') delete document.documentElement.dataset.theme;
	else document.documentElement.dataset.theme = theme;
	try {
		if (theme === 'system') localStorage.removeItem('llm-quota-theme');
		else localStorage.setItem('llm-quota-theme', theme);
	} catch { /* then it holds until the page is closed */ }
	showTheme();
}

themeButton.addEventListener('click', nextTheme);
showTheme();

// Shortcuts.

const shortcuts = [
	['g o', 'Overview', () => go([])], ['g k', 'Keys', () => go(['keys'])], ['g g', 'Groups', () => go(['groups'])],
	['g a', 'Alerts', () => go(['alerts'])], ['g u', 'Audit', () => go(['audit'])],
	['/', 'Search', () => document.getElementById('search')?.focus()],
	['n', 'New key or group, in their lists', () => document.getElementById('new')?.click()],
	['t', 'Change the theme', nextTheme], ['?', 'Show these shortcuts', help],
];
let typed = '';

function help() {
	dialog({
		title: 'Keyboard', narrow: true, cancel: 'Close',
		body: h('dl', {class: 'keys'}, [...shortcuts, ['← →', 'Step through a chart that has the focus'], ['Esc', 'Close a dialog']].map(([combo, what]) =>
			[h('dt', null, combo.split(' ').map((k, i) => [i > 0 && ' ', h('kbd', null, k)])), h('dd', null, what)])),
	});
}

document.getElementById('help').addEventListener('click', help);
document.getElementById('skip').addEventListener('click', (e) => {
	e.preventDefault(); // the address is ours
	main.focus();
});
addEventListener('keydown', (e) => {
	if (e.ctrlKey || e.metaKey || e.altKey || isOpen() || e.target.closest?.('input, select, textarea, [contenteditable]')) return;
	const combo = typed + e.key;
	typed = '';
	const found = shortcuts.find(([c]) => c === combo);
	if (found) {
		e.preventDefault();
		found[2]();
	} else if (e.key === 'g') {
		typed = 'g ';
		setTimeout(() => (typed = ''), 1500);
	}
});

// The state of the gate.

const banner = document.getElementById('banner');
const footer = document.getElementById('footer');

let updated = false;

function warn(problem) {
	const text = problem || (updated ? 'This gate has been updated. Reload the page when you are done.' : '');
	if (banner.textContent === text) return;
	banner.classList.toggle('calm', !problem);
	banner.hidden = !text;
	replace(banner, text);
}

async function status() {
	try {
		const s = await getOr('status');
		online(true);
		showStatus(s);
	} catch (err) {
		online(err.status !== 0);
		warn(err.status === 0 ? 'The server cannot be reached. What is shown may be old; it is tried again.' : `The state of the gate cannot be read: ${err.message}`);
	}
}

function showStatus(s) {
	if (!s) return;
	const {store} = s;
	warn(store.healthy ? '' : `The store is not healthy${store.since ? `, since ${exact(store.since)}` : ''}: ${store.problem || 'no reason was given'}. Limits do as on_store_error says until it works again.`);
	replace(footer, h('ul', null,
		h('li', null, 'Store: ', h('span', {class: store.healthy ? 'good' : 'bad'}, store.healthy ? 'healthy' : 'not healthy'), `, ${store.engine}, ${bytes(store.size_bytes)}`),
		store.last_sync && h('li', null, 'Last sync: ', when(store.last_sync)),
		h('li', null, `${many(s.keys, 'key')}, ${many(s.groups, 'group')}`),
		h('li', null, `${many(s.open_reservations, 'call')} under way`),
		h('li', null, `Version ${s.version}`)));
}

const says = {live: ['Live', 'on', 'Events arrive as they happen'], polling: ['Every 15 s', '', 'There is no stream of events: it is asked every 15 seconds'], waiting: ['Connecting', '', 'The stream of events is being opened'], off: ['Offline', 'off', 'The server cannot be reached']};

onLive((state) => {
	const el = document.getElementById('live');
	const [text, cls, title] = says[state];
	el.textContent = text;
	el.className = `live ${cls}`;
	el.title = title;
});

async function begin() {
	try {
		await loadSession();
	} catch (err) {
		replace(main, problem(err, begin));
		return;
	}
	const who = document.getElementById('user');
	replace(who, [session.user, session.read_only && 'read-only'].filter(Boolean).join(', '));
	who.title = who.textContent;
	onLeave(mayLeave);
	start(main);
	watch();
	status();
	setInterval(() => document.hidden || status(), 15000);
	setInterval(() => {
		for (const t of document.querySelectorAll('time[datetime]')) t.textContent = ago(t.dateTime);
	}, 20000);
	onEvent((e) => e.type === 'poll' && sameBuild());
}

/** sameBuild notes whether the server has been updated since this page was loaded. */
async function sameBuild() {
	try {
		const {build} = await getOr('session');
		updated = Boolean(build && session.build && build !== session.build);
	} catch { /* the status tells */ }
}

addEventListener('online', () => {
	status();
	if (!isOpen()) again();
});

begin();
