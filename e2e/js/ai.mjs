import { createOpenAI } from '@ai-sdk/openai';
import { APICallError, generateText, jsonSchema, RetryError, streamText, tool } from 'ai';

const openai = ({ url, key, script }) =>
  createOpenAI({ baseURL: `${url}/v1`, apiKey: key, headers: { 'X-Script': script } });

const ask = { prompt: 'What do I see?', maxOutputTokens: 400 };

const tools = {
  weather: tool({
    inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
  }),
};

async function streamed(model) {
  let text = '';
  for await (const part of streamText({ ...ask, model, onError() {} }).fullStream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') text += part.text;
  }
  return { text };
}

export const calls = {
  async call(c) {
    const got = await generateText({ ...ask, model: openai(c).chat('gpt-4o-mini') });
    return { text: got.text, total: got.usage.totalTokens };
  },
  stream: (c) => streamed(openai(c).chat('gpt-4o-mini')),
  async tools(c) {
    const got = await generateText({ ...ask, tools, model: openai(c).chat('gpt-4o-mini') });
    return { tool: got.toolCalls[0].toolName, city: got.toolCalls[0].input.city };
  },
  async response(c) {
    const got = await generateText({ ...ask, model: openai(c)('gpt-5-mini') });
    return { text: got.text, total: got.usage.totalTokens };
  },
  responseStream: (c) => streamed(openai(c)('gpt-5-mini')),
};

// What is tried again is wrapped, with the error of each try.
export const read = (err) => {
  const last = RetryError.isInstance(err) ? err.lastError : err;
  return {
    typed: APICallError.isInstance(last),
    tries: err.errors?.length ?? 1,
    status: last.statusCode,
    type: last.data?.error?.type,
    code: last.data?.error?.code,
    message: last.message,
    id: last.responseHeaders?.['x-request-id'],
  };
};
