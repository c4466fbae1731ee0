// A thousand publishes at once.
import { Client } from "@upstash/qstash";

const url = process.env.DESTINATION;
const client = new Client();
const numbers = Array.from({ length: 1500 }, (_, n) => n);
const answers = await Promise.all(numbers.map((n) => client.publish({ url, body: `m${n}` })));

console.log(JSON.stringify(answers.map((answer) => answer.messageId)));
