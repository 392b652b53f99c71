/** The endpoint's OpenAPI 3.1 document, made from the schemas that parse its requests. */

import { z } from 'zod'
import { DOCUMENTED_ROUTES, type DocumentedRoute, REPLY_SCHEMAS, REQUEST_SCHEMAS } from './openapi-routes.ts'

export function openApiDocument(serverUrl: string, version: string): object {
  const paths: Record<string, Record<string, object>> = {}
  for (const route of DOCUMENTED_ROUTES) {
    paths[route.path] = { ...paths[route.path], [route.method]: toOperation(route) }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Ringlet',
      version,
      description: 'LoRA adapters of one base model behind one endpoint: LoRAX’s API, and OpenAI’s under /v1.',
    },
    servers: [{ url: serverUrl }],
    security: [{ tenantToken: [] }],
    paths,
    components: {
      securitySchemes: { tenantToken: { type: 'http', scheme: 'bearer', description: 'A tenant’s token, `rl_…`' } },
      parameters: {
        adapterToken: header('x-adapter-token', 'Token for a private adapter’s home, e.g. the hub; `api_token` wins'),
        requestId: header('x-request-id', 'Comes back on the reply; under it a dropped stream resumes'),
        lastEventId: header('last-event-id', 'Resume a dropped stream after this event, within 60 s'),
        progress: header('x-progress', '1: tell the load and the queue as `ringlet-progress` events'),
      },
      schemas: { ...toSchemas(REQUEST_SCHEMAS, 'input'), ...toSchemas(REPLY_SCHEMAS, 'output') },
    },
  }
}

function toOperation(route: DocumentedRoute): object {
  const errors = route.path.startsWith('/v1') ? 'OpenAiError' : 'LoraxError'
  const content = {
    ...(route.reply === undefined ? {} : { 'application/json': refTo(route.reply) }),
    ...(route.event === undefined ? {} : { 'text/event-stream': refTo(route.event) }),
    ...(route.replyType === undefined ? {} : { [route.replyType]: {} }),
  }
  const parameters = [
    ...[...route.path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
      name,
      in: 'path',
      required: true,
      schema: { type: 'string' },
    })),
    ...(route.request === undefined ? [] : [shared('adapterToken'), shared('requestId')]),
    ...(route.event === undefined ? [] : [shared('lastEventId'), shared('progress')]),
  ]
  return {
    summary: route.summary,
    operationId: operationId(route),
    ...(route.open === true ? { security: [] } : {}),
    ...(parameters.length === 0 ? {} : { parameters }),
    ...(route.request === undefined
      ? {}
      : {
          requestBody: {
            required: true,
            content: { 'application/json': { ...refTo(route.request), example: route.example } },
          },
        }),
    responses: {
      200: { description: 'OK', ...(Object.keys(content).length === 0 ? {} : { content }) },
      default: { description: 'Refused; decide by `code`', content: { 'application/json': refTo(errors) } },
    },
  }
}

/** `postV1ChatCompletions`: a name for code that is generated from the document. */
function operationId({ method, path }: DocumentedRoute): string {
  const words = path.match(/[a-z0-9]+/gi) ?? ['root']
  return method + words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('')
}

function refTo(name: string): object {
  return { schema: { $ref: `#/components/schemas/${name}` } }
}

function shared(name: string): object {
  return { $ref: `#/components/parameters/${name}` }
}

function toSchemas(schemas: Readonly<Record<string, z.ZodType>>, io: 'input' | 'output'): Record<string, object> {
  return Object.fromEntries(
    Object.entries(schemas).map(([name, schema]) => {
      const { $schema: _dialect, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' })
      return [name, rest]
    }),
  )
}

function header(name: string, description: string): object {
  return { name, in: 'header', description, schema: { type: 'string' } }
}
