import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Lab } from './lab.ts'
import { serverAddress } from './topology.ts'

export interface Pace {
  seconds: number
  paceMs: number
  hurries: boolean
}

export interface Punched {
  by: 'dial' | 'accept' | null
  attempts: number
  ms: number
}

const reflectorPort = 3_478

/** Two pods punch a hole with bare sockets: what the NATs between them allow, without any sidecar. */
export class RawPunch {
  readonly #lab: Lab
  readonly #reflector: ChildProcess

  private constructor(lab: Lab, reflector: ChildProcess) {
    this.#lab = lab
    this.#reflector = reflector
  }

  static async start(lab: Lab): Promise<RawPunch> {
    const reflector = lab.spawn('mkmaster1', lab.node('test/lab/reflector.ts', String(reflectorPort)))
    await lineOf(reflector)
    return new RawPunch(lab, reflector)
  }

  stop(): void {
    this.#reflector.kill()
  }

  /** `listener` dials once and then listens; the other, or both without one, go on dialling. */
  async between(
    [a, b]: [string, string],
    pace: Pace,
    { listener, candidate = 'observed' }: { listener?: string; candidate?: 'observed' | 'hostIP' } = {},
  ): Promise<[Punched, Punched]> {
    const argv = this.#lab.node(
      'test/lab/puncher.ts',
      serverAddress,
      String(reflectorPort),
      process.env.TURNS ?? '16',
    )
    const ends = [a, b].map((pod) => ({ pod, process: this.#lab.spawn(pod, argv) }))
    const known = await Promise.all(ends.map(async (end) => ({ ...end, ...(await readyOf(end.process)) })))
    const results = known.map(({ pod, process }, i) => {
      const peer = known[1 - i]
      const [host = '', port = ''] = (peer?.observed ?? '').split(':')
      const address =
        candidate === 'observed'
          ? { host, port: Number(port) }
          : { host: this.#lab.pod(peer?.pod ?? '').hostIP, port: peer?.localPort ?? 0 }
      process.stdin?.write(`${JSON.stringify({ ...address, listens: pod === listener, ...pace })}\n`)
      return lineOf(process).then((line) => line as unknown as Punched)
    })
    return Promise.all(results) as Promise<[Punched, Punched]>
  }
}

async function readyOf(process: ChildProcess): Promise<{ localPort: number; observed: string }> {
  return (await lineOf(process)) as { localPort: number; observed: string }
}

async function lineOf(child: ChildProcess): Promise<Record<string, unknown>> {
  const [line] = await once(createInterface({ input: child.stdout ?? process.stdin }), 'line')
  return line.startsWith('{') ? JSON.parse(line) : {}
}
