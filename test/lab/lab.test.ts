import { afterEach, describe, expect, it } from 'vitest'
import { tell } from '../demo/story.ts'
import { LineProcess, startServer } from '../mesh/helpers.ts'
import { hostState } from './host.ts'
import { Lab } from './lab.ts'
import { namespacesOf } from './network.ts'
import { run } from './shell.ts'

const made: string[] = []

async function echoes(lab: Lab, from: string, to: string): Promise<boolean> {
  return (await lab.run(from, lab.node('test/conformance/client.ts', 'echo', to, '8080'))).code === 0
}

async function up(options: Parameters<typeof Lab.up>[0] = {}): Promise<Lab> {
  const lab = await Lab.up(options)
  made.push(lab.name)
  return lab
}

afterEach(async () => {
  for (const name of made.splice(0)) await Lab.down(name)
})

describe('labs', () => {
  it('stand side by side, and leave the host as it was', async () => {
    const before = await hostState()
    const [one, two] = await Promise.all([up(), up()])
    for (const lab of [one, two])
      expect(await tell(lab, 'tcp-echo-cloud', 'name')).toMatchObject({ route: 'relayed', echoed: true })
    expect((await hostState()).rules).toBe(before.rules)
    await Promise.all([one.down(), two.down()])
    expect(await hostState()).toEqual(before)
  })

  it('go down when everything of them was killed and their state is gone', async () => {
    const lab = await up()
    for (const namespace of await namespacesOf(lab.name)) {
      const { stdout } = await run(['ip', 'netns', 'pids', namespace])
      for (const pid of stdout.split('\n').filter(Boolean)) await run(['kill', '-KILL', pid])
    }
    await run(['rm', '-f', `${lab.folder}/state.json`])
    await Lab.down(lab.name)
    expect(await namespacesOf(lab.name)).toEqual([])
    expect(Lab.list()).not.toContain(lab.name)
  })

  it('go down when whoever read what is printed has left', async () => {
    const before = await hostState()
    const pipe = 'set -o pipefail; "$0" --disable-warning=ExperimentalWarning test/demo/main.ts | head -n 2'
    expect(await run(['bash', '-c', pipe, process.execPath])).toMatchObject({ code: 130, stderr: '' })
    expect(await hostState()).toEqual(before)
  })

  it('refuse a name that is taken, and one that cannot be a name', async () => {
    const { name } = await up()
    await expect(Lab.up({ name })).rejects.toThrow(`Cannot make lab ${name}: it is there`)
    await expect(Lab.up({ name: 'A B' })).rejects.toThrow('use a-z, 0-9 and -')
  })

  it('keep what the cloud begins out of the edge site', async () => {
    const lab = await up()
    const probe = (ip: string) =>
      `require('net').connect({host:'${ip}',port:20006}).once('connect',()=>console.log('in')).once('error',e=>console.log(e.code)).setTimeout(1000,()=>{console.log('nothing');process.exit()})`
    const inside = await lab.run('mkedge3', [
      'timeout',
      '3',
      ...lab.node('').slice(0, 1),
      '-e',
      probe('10.244.2.2'),
    ])
    const outside = await lab.run('mkworker3', [
      'timeout',
      '3',
      ...lab.node('').slice(0, 1),
      '-e',
      probe('203.0.113.20'),
    ])
    expect(inside.stdout.trim()).toContain('in')
    expect(outside.stdout.trim()).toBe('nothing')
  })

  it('delay the internet when asked to, and lose nothing', async () => {
    const lab = await up({ rttMs: 60 })
    const script = `const t=performance.now();require('net').connect({host:'203.0.113.10',port:20004}).once('connect',()=>{console.log(performance.now()-t);process.exit()})`
    const { stdout } = await lab.run('client', [...lab.node('').slice(0, 1), '-e', script])
    expect(Number(stdout)).toBeGreaterThanOrEqual(59)
    await startServer(lab, 'tcp-echo-cloud')
    const upload = () =>
      lab.run('client', lab.node('test/conformance/client.ts', 'upload', 'cloud', '8080', '50000000'))
    await expect
      .poll(async () => (await upload()).stdout.trim(), { timeout: 60_000 })
      .toBe('{"correct":true}')
  })
})

describe('the internet of a lab', () => {
  it('loses packets when told to, and none before and after', async () => {
    const lab = await up({ natA: 'none', natB: 'none' })
    const [node = ''] = lab.node('')
    const echo = `const s=require('dgram').createSocket('udp4');s.on('message',(m,r)=>s.send(m,r.port,r.address));s.bind(9,()=>console.log('[]'))`
    await new LineProcess(lab, 'router-b', [node, '-e', echo]).next()
    // One datagram after the other: what has not come back after 250 ms is lost.
    const send = `const s=require('dgram').createSocket('udp4');let got=0,left=100,timer;s.on('message',()=>{got++;next()})
      function next(){clearTimeout(timer);if(left--===0){console.log(got);process.exit()}s.send('x',9,'203.0.113.32');timer=setTimeout(next,250)};next()`
    const received = async () => Number((await lab.run('router-a', [node, '-e', send])).stdout)
    expect(await received()).toBe(100)
    await lab.setInternet({ loss: 0.2, seed: 7 })
    const lossy = await received()
    expect(lossy).toBeGreaterThan(30)
    expect(lossy).toBeLessThan(95)
    await lab.setInternet({})
    expect(await received()).toBe(100)
  })

  it('carries on after a router was rebooted, which has forgotten every mapping', async () => {
    const lab = await up({ natA: 'port', natB: 'symmetric' })
    const mapping = async () => {
      const { stdout } = await lab.run('router-b', ['conntrack', '-L', '-p', 'tcp'])
      return /dport=20004 .* dport=(\d+)/.exec(stdout)?.[1]
    }
    const before = await mapping()
    expect(Number(before)).toBeGreaterThan(0)
    await lab.rebootRouter('b')
    expect(await mapping()).not.toBe(before)
    await expect(lab.rebootRouter('c')).rejects.toThrow('there is no such site')
    await startServer(lab, 'b')
    // The server learns by its pings that the old mapping leads nowhere.
    await expect.poll(() => echoes(lab, 'a', 'b'), { timeout: 60_000 }).toBe(true)
  })
})

describe('the command line', () => {
  const cli = (...args: string[]) =>
    run([process.execPath, 'test/lab/main.ts', ...args], { timeoutMs: 60_000 })

  it('makes a lab, runs commands in it, shows it and takes it down', async () => {
    const name = `cli-${process.pid}`
    made.push(name)
    const json = JSON.parse((await cli('up', '--name', name, '--ports', '9000', '--json')).stdout)
    expect(json.pods.map((p: { name: string }) => p.name)).toEqual([
      'client',
      'tcp-echo-edge',
      'tcp-echo-cloud',
    ])
    expect(json.services.find((s: { name: string }) => s.name === 'edge').ports).toContain(9_000)
    const hostname = await cli('exec', '--name', name, 'client', '--', 'cat', '/etc/resolv.conf')
    expect(hostname.stdout).toContain('search default.svc.cluster.local')
    expect((await cli('exec', '--name', name, 'client', '--', 'sh', '-c', 'exit 7')).code).toBe(7)
    expect((await cli('pods', '--name', name)).stdout).toMatch(/tcp-echo-cloud +mkworker3 +cloud/)
    expect((await cli('logs', '--name', name, 'client')).stdout).toContain(
      'ready: the tunnel endpoint serves',
    )
    expect((await cli('down', '--name', name)).stdout).toBe(`Down: ${name}\n`)
  })

  it('says what is wrong', async () => {
    expect((await cli('up', '--rtt', 'slow')).stderr).toContain('Cannot delay by "slow"')
    expect((await cli('up', '--ports', 'x')).stderr).toContain('Cannot use ports "x"')
    expect((await cli('up', '--loss', '101')).stderr).toContain(
      'Cannot lose "101": give per cent from 0 to 100.',
    )
    expect((await cli('up', '--nat-a', 'cone')).stderr).toBe(
      'Cannot make a NAT of kind "cone": --nat-a takes one of full, address, port, symmetric, none.\n',
    )
    expect((await cli('up', '--nat-b', 'x')).stderr).toContain('--nat-b takes one of')
    expect((await cli('exec', '--name', 'no-such-lab', 'client', '--', 'true')).stderr).toContain(
      'Cannot use lab no-such-lab',
    )
    expect((await cli('--help')).stdout).toContain('exec [options] <pod> <command...>')
  })
})
