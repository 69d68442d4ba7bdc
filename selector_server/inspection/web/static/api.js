// Asks the server. The token is kept in this module's memory, and nowhere else.

import { decode } from "./messages.js";

const SERVICE = "selector.v1.";
const SECONDS = 20;
let token = "";
let schema;

export class Refused extends Error {
  constructor(status, told) {
    super(told.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.limit = told.limit ?? "";
  }
}

export function useToken(words) { token = words.trim(); }

/** The answer to a call of InspectionService. Raises Refused, and TypeError if there is no answer. */
export async function ask(method, request = {}) {
  schema ??= await (await get("/schema.json")).json();
  const response = await post(method, request, AbortSignal.timeout(1000 * SECONDS));
  return decode(schema, `${SERVICE}${method}Response`, new Uint8Array(await response.arrayBuffer()));
}

/** The bytes of a download. */
export async function download(method, request) { return (await post(method, request)).blob(); }

async function post(method, request, signal) {
  const headers = { "content-type": "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  return checked(await fetch(`/api/${method}`, { method: "POST", headers, body: JSON.stringify(request), signal }));
}

async function get(path) { return checked(await fetch(path)); }

async function checked(response) {
  if (response.ok) return response;
  throw new Refused(response.status, await response.json().catch(() => ({})));
}
