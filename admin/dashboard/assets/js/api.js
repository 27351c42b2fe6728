// The API of the gate, below api/ beside this page.

const base = new URL('api/', location.href.replace(/[?#].*$/, ''));

/** ApiError is an answer that is an error, or none (status 0). */
export class ApiError extends Error {
	constructor(status, message) {
		super(message);
		this.status = status;
	}

	/** advice is what to do about it. */
	get advice() {
		switch (this.status) {
		case 0: return 'Check the connection, then try again.';
		case 401: return 'Reload the page to sign in again.';
		case 403: return 'Ask an operator of this gate if you need to do this.';
		case 409: return 'Change what it is in conflict with, then try again.';
		case 503: return 'The store may be failing: see the foot of the page, and try again in a moment.';
		}
		return '';
	}
}

/** isAbort tells whether an error only says that nobody waits any more. */
export const isAbort = (err) => err && err.name === 'AbortError';

/** path writes segments as a path, each of them escaped. */
export const path = (...segments) => segments.map(encodeURIComponent).join('/');

function address(route, query) {
	const url = new URL(route, base);
	for (const [name, value] of Object.entries(query || {})) {
		if (value !== undefined && value !== null && value !== '') url.searchParams.set(name, value);
	}
	return url;
}

/** eventsURL is where the stream of events is, but for admissions, of which nothing is shown. */
export const eventsURL = () => address('events', {types: 'settlement,refusal,alert,change'});

/** download is the address of what the browser is to save. */
export const download = (route, query) => address(route, query).href;

/** request asks the API. It returns {data, etag}, or throws an ApiError. */
export async function request(method, route, {query, body, etag, signal, text} = {}) {
	const headers = {Accept: text ? 'text/csv' : 'application/json'};
	if (body !== undefined) headers['Content-Type'] = 'application/json';
	if (etag) headers['If-Match'] = etag;
	let answer;
	try {
		answer = await fetch(address(route, query), {
			method, headers, signal, credentials: 'same-origin', cache: 'no-store',
			body: body === undefined ? undefined : JSON.stringify(body),
		});
	} catch (err) {
		if (isAbort(err)) throw err;
		throw new ApiError(0, 'The server cannot be reached.');
	}
	if (!answer.ok) throw await failure(answer);
	if (answer.status === 204) return {data: null};
	try {
		return {data: text ? await answer.text() : await answer.json(), etag: answer.headers.get('ETag')};
	} catch (err) {
		if (isAbort(err)) throw err;
		throw new ApiError(0, 'The answer of the server broke off.');
	}
}

async function failure(answer) {
	let message = '';
	try {
		message = (await answer.json()).error;
	} catch { /* an answer of something in between */ }
	if (!message) message = answer.status === 401 ? 'You are not signed in any more.' : `The server answered ${answer.status} ${answer.statusText}.`;
	return new ApiError(answer.status, message);
}

export const get = async (route, query, signal) => (await request('GET', route, {query, signal})).data;

/** getOr is get for a part that a gate may lack: then it returns null. */
export async function getOr(route, query, signal) {
	try {
		return await get(route, query, signal);
	} catch (err) {
		if (err.status === 404) return null;
		throw err;
	}
}
