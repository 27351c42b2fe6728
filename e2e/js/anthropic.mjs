import Anthropic from '@anthropic-ai/sdk';

const client = ({ url, key, script }) =>
  new Anthropic({ baseURL: url, apiKey: key, authToken: null, defaultHeaders: { 'X-Script': script } });

const message = {
  model: 'claude-sonnet-4-5',
  max_tokens: 400,
  messages: [{ role: 'user', content: 'What do I see?' }],
};

const tools = [
  { name: 'weather', input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } },
];

export const calls = {
  async call(c) {
    const got = await client(c).messages.create(message);
    return { text: got.content[0].text, total: got.usage.output_tokens };
  },
  async stream(c) {
    const got = await client(c).messages.stream(message).finalMessage();
    return { text: got.content[0].text, total: got.usage.output_tokens };
  },
  async tools(c) {
    const got = await client(c).messages.create({ ...message, tools });
    const { name, input } = got.content.find((block) => block.type === 'tool_use');
    return { tool: name, city: input.city };
  },
};

export const read = (err) => ({
  typed: err instanceof Anthropic.APIError,
  status: err.status,
  type: err.error?.error?.type,
  message: err.message,
  id: err.requestID,
});
