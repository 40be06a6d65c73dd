import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { EdgeMeshError } from './errors.ts'
import type { Metrics } from './metrics.ts'

export interface AdminOptions {
  port: number
  metrics: Metrics
  /** `/healthz`: the process works. `/readyz`: it can serve; returns what is missing, empty when ready. */
  missing: () => string[]
  /** More GET pages, JSON. */
  pages?: Record<string, () => unknown>
  /** POST actions that only loopback may call. */
  actions?: Record<string, () => void>
}

/** Serves health, metrics and loopback-only actions on every address of the pod. */
export async function listenAdmin(options: AdminOptions): Promise<{ server: Server; port: number }> {
  const server = createServer({ headersTimeout: 5_000, requestTimeout: 5_000, maxHeaderSize: 8_192 })
  server.maxConnections = 64
  server.on('request', async (request, response) => {
    const send = (status: number, body: string, type = 'text/plain; charset=utf-8') =>
      response.writeHead(status, { 'content-type': type }).end(`${body}\n`)
    const path = (request.url ?? '').split('?')[0] ?? ''
    if (request.method === 'POST') {
      const action = own(options.actions, path)
      if (action === undefined) return send(404, 'no such action')
      if (!isLoopback(request.socket.remoteAddress)) return send(403, 'only from loopback')
      action()
      return send(202, 'accepted')
    }
    if (request.method !== 'GET') return send(405, 'GET or POST')
    if (path === '/healthz') return send(200, 'ok')
    if (path === '/readyz') {
      const missing = options.missing()
      return missing.length === 0 ? send(200, 'ready') : send(503, `not ready: ${missing.join(', ')}`)
    }
    if (path === '/metrics') {
      return send(
        200,
        (await options.metrics.registry.metrics()).trimEnd(),
        options.metrics.registry.contentType,
      )
    }
    const page = own(options.pages, path)
    return page === undefined
      ? send(404, 'no such page')
      : send(200, JSON.stringify(page()), 'application/json')
  })
  await listen(server, options.port)
  return { server, port: (server.address() as AddressInfo).port }
}

/** Own keys only: `/constructor` is no page. */
function own<T>(table: Record<string, T> | undefined, key: string): T | undefined {
  return table !== undefined && Object.hasOwn(table, key) ? table[key] : undefined
}

function isLoopback(address: string | undefined): boolean {
  return (
    address === '::1' || address?.startsWith('127.') === true || address?.startsWith('::ffff:127.') === true
  )
}

/** Binds on every address, IPv6 where the kernel has it; a port in use is one clear error. */
function listen(server: Server, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', (error) =>
    reject(new EdgeMeshError('bad-config', `Cannot listen on admin port ${port}: ${error.message}.`, error)),
  )
  server.listen(port, resolve)
  return promise
}
