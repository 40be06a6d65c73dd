// The child of the kernel probe: `node probe-child.ts "ADDRESS PORT"...`. Connects to each address through the
// rules that init wrote, takes the place of the interceptor, and asks the kernel where the connection was meant to
// go. Prints a line before each question, and one at last: works, already-running, or what is wrong.
import { writeSync } from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { descriptorOf } from '#shared/descriptor.ts'
import { codeOf, sentenceOf } from '#shared/errors.ts'
import { ports } from '#shared/ports.ts'
import type { Destination } from '../services/destination.ts'
import { interceptorSocket } from './loopback.ts'
import { originalDestination } from './original-destination.ts'
import { asking } from './probe.ts'

async function listen(host: string): Promise<Server> {
  const server = createServer({ pauseOnConnect: true })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  const fd = host === '127.0.0.1' ? interceptorSocket(ports.interceptor) : undefined
  server.listen(fd === undefined ? { host, port: ports.interceptor } : { fd }, resolve)
  await promise
  return server
}

async function recover(target: Destination): Promise<string> {
  const six = target.address.includes(':')
  const server = await listen(six ? '::1' : '127.0.0.1')
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  server.on('connection', (socket) => {
    try {
      writeSync(1, `${asking}\n`) // at once: the call may never come back
      const found = originalDestination(descriptorOf(socket), six ? 6 : 4)
      const same = found.address === target.address && found.port === target.port
      resolve(same ? 'works' : `it answers ${found.address} port ${found.port} for ${target.address}`)
    } catch (error) {
      reject(error)
    }
    socket.destroy()
  })
  const client = connect({ host: target.address, port: target.port })
  client.once('error', (error) =>
    reject(new Error(`the rules do not capture ${target.address}: ${error.message}`)),
  )
  return promise.finally(() => {
    client.destroy()
    server.close()
  })
}

async function main(): Promise<string> {
  try {
    for (const text of process.argv.slice(2)) {
      const [address = '', port = ''] = text.split(' ')
      const outcome = await recover({ address, port: Number(port) })
      if (outcome !== 'works') return outcome
    }
    return 'works'
  } catch (error) {
    return codeOf(error) === 'EADDRINUSE' ? 'already-running' : sentenceOf(error)
  }
}

console.log(await main())
process.exit(0)
