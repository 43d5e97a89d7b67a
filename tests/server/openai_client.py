"""The package `openai`, unchanged, against a server: chat, streams, logprobs, stop, schemas, errors, cancellation."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
hello = [{"role": "user", "content": "Hello"}]


def chat(**more):
    return client.chat.completions.create(model="any", messages=hello, seed=1, **more)


assert [model.id for model in client.models.list()] == ["lapidary-tiny"]

whole = chat(max_tokens=12)
assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason == "length"
assert whole.usage.completion_tokens == 12 and whole.usage.prompt_tokens_details.cached_tokens == 0

text, usage = "", None
for chunk in chat(max_tokens=12, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    text += "".join(choice.delta.content or "" for choice in chunk.choices)
assert text == whole.choices[0].message.content and usage.completion_tokens == 12
with client.chat.completions.stream(model="any", messages=hello, seed=1, max_tokens=12) as stream:
    assert "".join(event.delta for event in stream if event.type == "content.delta") == text

told = chat(max_tokens=4, logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert len(told) == 4 and all(len(place.top_logprobs) == 2 and place.logprob <= 0 for place in told)

stopped = chat(max_tokens=12, stop=[text[3:6]]).choices[0]
assert stopped.message.content == text[: text.index(text[3:6])] and stopped.finish_reason == "stop"

properties = {"ok": {"type": "boolean"}}
schema = {"type": "object", "properties": properties, "required": ["ok"], "additionalProperties": False}
format = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
answer = json.loads(chat(max_tokens=60, response_format=format).choices[0].message.content)
assert list(answer) == ["ok"] and isinstance(answer["ok"], bool)

several = client.completions.create(model="any", prompt="She was", n=2, seed=3, max_tokens=5, logprobs=1, echo=True)
assert len(several.choices) == 2 and several.choices[0].text.startswith("She was")
assert len(several.choices[0].logprobs.tokens) == len(several.choices[0].logprobs.text_offset)

for error, request in [
    (openai.BadRequestError, lambda: chat(temperature=-1)),
    (openai.BadRequestError, lambda: chat(max_tokens="x")),
    (openai.NotFoundError, lambda: client.models.retrieve("other")),
    (openai.InternalServerError, lambda: client.embeddings.create(model="any", input="x")),
]:
    try:
        request()
        raise SystemExit(f"expected {error}")
    except error as raised:
        assert raised.body["message"], raised.body

# Streams that are closed: what they had is free for the next ones.
for _ in range(6):
    stream = client.completions.create(
        model="any", prompt="She", stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
try:
    client.with_options(timeout=0.2).completions.create(
        model="any", prompt="She", max_tokens=4000, extra_body={"ignore_eos": True}
    )
    raise SystemExit("expected a timeout")
except openai.APITimeoutError:
    pass
print("ok")
