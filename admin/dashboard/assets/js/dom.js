// Making elements. Text becomes text nodes and attributes, never markup:
// names, models and messages are written by others.

const SVG = 'http://www.w3.org/2000/svg';

/**
 * h makes an element. Props: class, on (listeners by event), data, vars (CSS
 * variables), value/checked/disabled/... as properties, all else as
 * attributes; false, null and undefined leave an attribute out.
 */
export function h(tag, props, ...children) {
	return fill(document.createElement(tag), props, children);
}

/** svg is h for SVG elements. */
export function svg(tag, props, ...children) {
	return fill(document.createElementNS(SVG, tag), props, children);
}

const asProperty = new Set(['value', 'checked', 'disabled', 'selected', 'hidden', 'indeterminate', 'open', 'required', 'readOnly']);

function fill(el, props, children) {
	for (const [name, value] of Object.entries(props || {})) {
		if (value === undefined || value === null || value === false) continue;
		if (name === 'on') for (const [event, fn] of Object.entries(value)) el.addEventListener(event, fn);
		else if (name === 'data') Object.assign(el.dataset, value);
		else if (name === 'vars') for (const [v, x] of Object.entries(value)) el.style.setProperty('--' + v, x);
		else if (asProperty.has(name)) el[name] = value;
		else el.setAttribute(name, value === true ? '' : value);
	}
	// A select takes its value when its options are there.
	el.append(...nodes(children));
	if (props && props.value !== undefined && el.tagName === 'SELECT') el.value = props.value;
	return el;
}

function nodes(children) {
	return children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== '');
}

/** replace puts children in the place of all that is in el. */
export function replace(el, ...children) {
	el.replaceChildren(...nodes(children));
	return el;
}

/** renew is replace that leaves the focus on the link or button that is like the one that had it. */
export function renew(el, ...children) {
	const places = () => [...el.querySelectorAll('a, button')];
	const like = (p) => p && p.textContent + p.getAttribute('href');
	const at = places().indexOf(document.activeElement);
	const was = at >= 0 && like(document.activeElement);
	replace(el, ...children);
	if (at < 0) return el;
	const now = places();
	((like(now[at]) !== was && now.find((p) => like(p) === was)) || now[at])?.focus();
	return el;
}

let last = 0;

/** unique returns an id that no other element has. */
export function unique(prefix) {
	return `${prefix}-${++last}`;
}

/** debounce calls fn once things have been quiet for that many ms. */
export function debounce(fn, ms) {
	let timer;
	return (...args) => {
		clearTimeout(timer);
		timer = setTimeout(() => fn(...args), ms);
	};
}

/** throttle calls fn at most every ms, the last time with the last call. */
export function throttle(fn, ms) {
	let timer = null;
	let again = false;
	return function run() {
		if (timer !== null) {
			again = true;
			return;
		}
		fn();
		timer = setTimeout(() => {
			timer = null;
			if (again) {
				again = false;
				run();
			}
		}, ms);
	};
}
