// URL groups, queues, schedules, the DLQ and logs, all of which are the upstream's. Prints what the SDK said.
import { Client } from "@upstash/qstash";

const url = process.env.DESTINATION;
const client = new Client({ retry: false });
const said = {};

await client.urlGroups.addEndpoints({
  name: "team",
  endpoints: [{ url: "https://a.example/x", name: "a" }, { url: "https://b.example/y" }],
});
said.groups = await client.urlGroups.list();
said.toAll = await client.publish({ urlGroup: "team", body: "to all" });
said.inBatch = await client.batch([
  { urlGroup: "team", body: "batched to all" },
  { url, body: "to one" },
]);
await client.urlGroups.removeEndpoints({ name: "team", endpoints: [{ name: "a" }] });
said.group = await client.urlGroups.get("team");
await client.urlGroups.delete("team");
said.noGroup = await client.publish({ urlGroup: "team", body: "to nobody" }).catch((error) => error.status);

const queue = client.queue({ queueName: "orders" });
await queue.upsert({ parallelism: 2 });
said.queue = await queue.get();
await queue.pause();
said.paused = (await queue.get()).paused;
await queue.resume();
said.resumed = (await queue.get()).paused;
said.queues = await queue.list();
await queue.delete();
said.noQueue = await queue.get().catch((error) => error.status);

const { scheduleId } = await client.schedules.create({
  destination: url,
  cron: "*/5 * * * *",
  body: JSON.stringify({ every: 5 }),
  headers: { "X-Tenant": "42" },
  retries: 1,
});
said.schedule = await client.schedules.get(scheduleId);
await client.schedules.pause({ schedule: scheduleId });
said.schedulePaused = (await client.schedules.get(scheduleId)).isPaused;
await client.schedules.resume({ schedule: scheduleId });
said.schedules = await client.schedules.list();
await client.schedules.delete(scheduleId);
said.noSchedule = await client.schedules.get(scheduleId).catch((error) => error.status);

const sent = [];
for (const n of [0, 1, 2, 3]) sent.push((await client.publish({ url, body: `d${n}`, label: `l${n}` })).messageId);
await fetch(`${process.env.UPSTREAM_URL}/dispatcher-dev/fail`, {
  method: "POST",
  body: JSON.stringify({ messageIds: sent, status: 503, body: "busy" }),
});
said.sent = sent;
said.dead = (await client.dlq.listMessages()).messages;
said.deadOfLabel = (await client.dlq.listMessages({ filter: { label: "l2" } })).messages;
said.deleted = await client.dlq.delete(said.dead[0].dlqId);
said.retried = await client.dlq.retry(said.dead[1].dlqId);
said.deletedMany = await client.dlq.delete([said.dead[2].dlqId, said.dead[3].dlqId]);
said.left = (await client.dlq.listMessages()).messages;
said.logs = (await client.logs({ filter: { messageId: sent[0] } })).logs;

console.log(JSON.stringify(said));
