// What the SDK makes of refusals: the class, the status, the text, and how many requests it made of one call.
import { Client } from "@upstash/qstash";

const fetched = globalThis.fetch;
let requests = 0;
globalThis.fetch = (...words) => {
  requests += 1;
  return fetched(...words);
};
console.error = () => {};

const destinations = JSON.parse(process.env.DESTINATIONS);
const said = {};
for (const [name, { url, token, batch }] of Object.entries(destinations)) {
  const client = new Client({ token });
  requests = 0;
  const call = batch ? client.batch(batch) : client.publish({ url, body: "x" });
  said[name] = await call.then(
    (answer) => ({ answer, requests }),
    (error) => ({ kind: error.name, status: error.status, text: error.message, requests }),
  );
}

console.log(JSON.stringify(said));
