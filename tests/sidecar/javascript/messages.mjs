// Publishes in every way that there is, and looks up and cancels right after. Prints what the SDK said.
import { Client } from "@upstash/qstash";

const url = process.env.DESTINATION;
const client = new Client({ retry: false });
const queue = client.queue({ queueName: "orders" });
const said = {};

said.text = await client.publish({ url, body: "grüße", headers: { "X-Tenant": "42" }, retries: 2 });
said.json = await client.publishJSON({ url, body: { a: [1] }, delay: 10, label: "later" });
said.binary = await client.publish({ url, body: new Uint8Array([0xff, 0x00]) });
said.empty = await client.publish({ url });
said.options = await client.publishJSON({
  url,
  body: {},
  method: "PUT",
  callback: "https://callback.example",
  failureCallback: "https://failure.example",
  timeout: 30,
  retryDelay: "1000 * (1 + retried)",
  flowControl: { key: "user", parallelism: 5, rate: 10, period: "1m" },
  redact: { body: true, header: ["Authorization"] },
});
said.enqueued = [];
for (const n of [0, 1]) said.enqueued.push(await queue.enqueue({ url, body: `q${n}` }));
said.enqueuedJSON = await queue.enqueueJSON({ url, body: { n: 2 } });
said.once = await client.publish({ url, body: "once", deduplicationId: "mine" });
said.twice = await client.publish({ url, body: "once", deduplicationId: "mine" });

said.odd = {};
for (const one of JSON.parse(process.env.ODD_DESTINATIONS)) {
  said.odd[one] = await client.publish({ url: one, body: one });
}

const many = Array.from({ length: 150 }, (_, n) => ({ url, body: `b${n}` }));
said.batch = await client.batch([...many, ...[0, 1, 2].map((n) => ({ url, body: `bq${n}`, queueName: "other" }))]);
said.batchJSON = await client.batchJSON([0, 1, 2].map((n) => ({ url, body: { n } })));

said.found = await client.messages.get(said.text.messageId);
said.cancelled = await client.messages.cancel(said.json.messageId);
said.gone = await client.messages.get(said.json.messageId).catch((error) => error.status);
said.cancelledMany = await client.messages.cancel(said.batchJSON.map((one) => one.messageId));
said.labelled = await client.batch([0, 1].map((n) => ({ url, body: `l${n}`, label: "revoked" })));
said.cancelledByLabel = await client.messages
  .cancel({ filter: { label: "revoked" } })
  .catch((error) => error.status);

console.log(JSON.stringify(said));
