import type { ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import { expect, vi } from 'vitest'
import type { Lab } from '../lab/lab.ts'

/** A process in a pod whose standard output is JSON lines. */
export class LineProcess {
  readonly process: ChildProcess
  readonly #lines: string[] = []
  #wake: (() => void) | undefined

  constructor(lab: Lab, pod: string, argv: readonly string[]) {
    this.process = lab.spawn(pod, argv)
    createInterface({ input: this.process.stdout ?? process.stdin }).on('line', (line) => {
      this.#lines.push(line)
      this.#wake?.()
    })
  }

  async next(): Promise<Record<string, unknown>> {
    while (this.#lines.length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#wake = resolve
      await promise
    }
    return JSON.parse(this.#lines.shift() ?? '{}')
  }

  /** Ends a steady client by its standard input, and returns its report. */
  async finish(): Promise<Record<string, unknown>> {
    this.process.stdin?.write('stop\n')
    return this.next()
  }
}

/** A traffic server of the conformance suite, listening. */
export async function startServer(lab: Lab, pod: string, port = 8080): Promise<LineProcess> {
  const server = new LineProcess(lab, pod, lab.node('test/conformance/server.ts', '::', String(port)))
  await server.next()
  return server
}

export async function client(
  lab: Lab,
  name: string,
  host: string,
  port: number,
  ...args: (string | number)[]
): Promise<Record<string, unknown>> {
  const argv = lab.node('test/conformance/client.ts', name, host, String(port), ...args.map(String))
  const { code, stdout, stderr } = await lab.run('client', argv, { timeoutMs: 60_000 })
  if (code !== 0) throw new Error(`client ${name} ended with ${code}: ${stderr}`)
  return JSON.parse(stdout)
}

/** Whether one echo works now. */
export async function echoes(lab: Lab, host: string, port = 8080): Promise<boolean> {
  const answer = await client(lab, 'echo', host, port).catch(() => undefined)
  return answer?.by === 'end'
}

/** What the pod's sidecar has logged. */
export async function logOf(lab: Lab, part: string): Promise<Record<string, unknown>[]> {
  const { stdout } = await lab.run('internet', ['cat', lab.logOf(part)])
  return stdout.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []))
}

export async function lastAccess(lab: Lab, pod: string): Promise<Record<string, unknown> | undefined> {
  return (await logOf(lab, pod)).filter((l) => l.msg === 'connection' && l.direction === 'outbound').at(-1)
}

/** One metric's value, by the start of its line. */
export async function metric(lab: Lab, where: string, line: string): Promise<number> {
  const text = await lab.admin(where, '/metrics')
  return Number(
    text
      .split('\n')
      .find((l) => l.startsWith(line))
      ?.split(' ')
      .at(-1) ?? 0,
  )
}

/** The port of the server that the pod's sidecar is connected to; undefined while it has none. */
export async function serverOf(lab: Lab, pod: string): Promise<number | undefined> {
  const { server } = JSON.parse(await lab.admin(pod, '/status'))
  return server.up ? server.address.port : undefined
}

/** Makes a sidecar begin at one replica: it knows both, and the other one does not answer meanwhile. */
export async function place(lab: Lab, pod: string, replica: 'server' | 'server-2'): Promise<void> {
  const others = lab.replicas.filter((r) => r.name !== replica)
  await lab.stopSidecar(pod)
  for (const { name } of others) await lab.stopServer('STOP', name)
  await lab.startSidecar(pod)
  for (const { name } of others) await lab.stopServer('CONT', name)
  const port = lab.replicas.find((r) => r.name === replica)?.port
  await vi.waitFor(async () => expect(await serverOf(lab, pod)).toBe(port), { timeout: 30_000, interval: 50 })
}
