// The package `openai` of npm, unchanged, against a server: chat, streams, logprobs, stop, schemas, errors,
// cancellation.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const chat = (more) => client.chat.completions.create({ model: "any", messages, seed: 1, ...more });

assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["lapidary-tiny"]);

const whole = await chat({ max_tokens: 12 });
assert.equal(whole.choices[0].message.role, "assistant");
assert.equal(whole.usage.completion_tokens, 12);

let text = "";
let usage = null;
for await (const chunk of await chat({ max_tokens: 12, stream: true, stream_options: { include_usage: true } })) {
  usage = chunk.usage ?? usage;
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, 12);

const told = (await chat({ max_tokens: 4, logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
assert.equal(told.length, 4);
assert.ok(told.every((place) => place.top_logprobs.length === 2));

const stopped = (await chat({ max_tokens: 12, stop: [text.slice(3, 6)] })).choices[0];
assert.equal(stopped.message.content, text.slice(0, text.indexOf(text.slice(3, 6))));

const properties = { ok: { type: "boolean" } };
const schema = { type: "object", properties, required: ["ok"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "it", schema, strict: true } };
const answer = JSON.parse((await chat({ max_tokens: 60, response_format: format })).choices[0].message.content);
assert.equal(typeof answer.ok, "boolean");

await assert.rejects(chat({ temperature: -1 }), (error) => error.status === 400 && error.param === "temperature");
await assert.rejects(client.embeddings.create({ model: "any", input: "x" }), (error) => error.status === 501);

const controller = new AbortController();
const stream = await client.completions.create(
  { model: "any", prompt: "She", stream: true, max_tokens: 4000, ignore_eos: true },
  { signal: controller.signal },
);
for await (const _ of stream) {
  controller.abort();
}
console.log("ok");
