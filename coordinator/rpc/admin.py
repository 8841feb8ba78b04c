"""`fleet.v1.Admin`: what the CLI can do. Parses, calls a noun in a thread, renders; no rules of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coordinator.fleet.device import Device
from coordinator.fleet.registry import Registry
from coordinator.releases.rollouts import RolloutService
from coordinator.releases.service import ReleaseService
from coordinator.rounds.round import Job
from coordinator.rounds.service import JobService
from coordinator.rounds.states import JOB_ENDED
from coordinator.rpc import admin_views as views
from coordinator.rpc.interceptors import calling_peer
from coordinator.rpc.session import SessionHub
from protos.fleet.v1 import admin_pb2, admin_pb2_grpc

T = TypeVar("T")
_JOB_ENDS = frozenset(f"job.{state}" for state in JOB_ENDED)


@dataclass(frozen=True)
class Nouns:
    """What an admin can reach."""

    registry: Registry
    hub: SessionHub
    releases: ReleaseService
    rollouts: RolloutService
    jobs: JobService


class AdminServicer(admin_pb2_grpc.AdminServicer):
    def __init__(self, nouns: Nouns, fleet_address: Callable[[], str]) -> None:
        """`fleet_address` is where mutual TLS is spoken, host:port, for admins from afar."""
        self._registry = nouns.registry
        self._hub = nouns.hub
        self._releases = nouns.releases
        self._rollouts = nouns.rollouts
        self._jobs = nouns.jobs
        self._fleet_address = fleet_address

    # ---- join tokens

    async def CreateToken(self, request: admin_pb2.CreateTokenRequest, context: Any) -> admin_pb2.CreateTokenResponse:
        actor = calling_peer().name
        tokens, expires_at = await asyncio.to_thread(
            lambda: self._registry.create_tokens(
                count=request.count or 1,
                valid_for_s=request.valid_for_s,
                labels=dict(request.labels),
                require_approval=request.require_approval,
                actor=actor,
            )
        )
        return admin_pb2.CreateTokenResponse(tokens=[token.text for token in tokens], expires_at=expires_at)

    async def ListTokens(self, request: admin_pb2.ListTokensRequest, context: Any) -> admin_pb2.ListTokensResponse:
        tokens, names = await asyncio.to_thread(self._registry.tokens), await self._names()
        shown = [views.token(token, self._registry.state_of(token), names) for token in tokens]
        return admin_pb2.ListTokensResponse(tokens=shown)

    async def RevokeToken(self, request: admin_pb2.RevokeTokenRequest, context: Any) -> admin_pb2.JoinToken:
        token = await asyncio.to_thread(self._registry.revoke_token, request.token, calling_peer().name)
        return views.token(token, self._registry.state_of(token), await self._names())

    # ---- devices

    async def ListDevices(self, request: admin_pb2.ListDevicesRequest, context: Any) -> admin_pb2.ListDevicesResponse:
        devices = await asyncio.to_thread(self._registry.devices, request.cohort)
        return admin_pb2.ListDevicesResponse(devices=[self._view(device, with_apps=False) for device in devices])

    async def GetDevice(self, request: admin_pb2.DeviceRequest, context: Any) -> admin_pb2.Device:
        return self._view(await asyncio.to_thread(self._registry.device, request.device))

    async def ApproveDevice(self, request: admin_pb2.DeviceRequest, context: Any) -> admin_pb2.Device:
        return await self._change_device(self._registry.approve, request.device, calling_peer().name)

    async def QuarantineDevice(self, request: admin_pb2.DeviceRequest, context: Any) -> admin_pb2.Device:
        peer = calling_peer().name
        return await self._change_device(self._registry.quarantine, request.device, peer, request.reason)

    async def ReleaseDevice(self, request: admin_pb2.DeviceRequest, context: Any) -> admin_pb2.Device:
        return await self._change_device(self._registry.release, request.device, calling_peer().name)

    async def RevokeDevice(self, request: admin_pb2.DeviceRequest, context: Any) -> admin_pb2.Device:
        peer = calling_peer().name
        return await self._change_device(self._registry.revoke, request.device, peer, request.reason)

    async def _change_device(self, change: Callable[..., Device], *arguments: str) -> admin_pb2.Device:
        device = await asyncio.to_thread(change, *arguments)
        self._hub.device_changed(device)
        return self._view(device)

    def _view(self, device: Device, *, with_apps: bool = True) -> admin_pb2.Device:
        return views.device(device, connected=device.id in self._hub.attached(), with_apps=with_apps)

    async def ListAudit(self, request: admin_pb2.ListAuditRequest, context: Any) -> admin_pb2.ListAuditResponse:
        entries = await asyncio.to_thread(self._registry.audit, request.limit or 50)
        return admin_pb2.ListAuditResponse(entries=[views.audit(entry) for entry in entries])

    # ---- admins and keys

    async def IssueAdmin(self, request: admin_pb2.IssueAdminRequest, context: Any) -> admin_pb2.IssueAdminResponse:
        actor, admins = calling_peer().name, self._registry.admins
        admin, certificate = await asyncio.to_thread(
            admins.issue, request.name, request.csr_der, request.valid_for_s, actor
        )
        return admin_pb2.IssueAdminResponse(
            certificate_der=certificate,
            ca_certificate_der=self._registry.authority_certificate,
            expires_at=admin.expires_at,
            fleet_address=self._fleet_address(),
        )

    async def ListAdmins(self, request: admin_pb2.ListAdminsRequest, context: Any) -> admin_pb2.ListAdminsResponse:
        admins = await asyncio.to_thread(self._registry.admins.admins)
        return admin_pb2.ListAdminsResponse(admins=[views.admin(one) for one in admins])

    async def RevokeAdmin(self, request: admin_pb2.RevokeAdminRequest, context: Any) -> admin_pb2.AdminIdentity:
        return views.admin(await asyncio.to_thread(self._registry.admins.revoke, request.name, calling_peer().name))

    async def RotateKeys(self, request: admin_pb2.RotateKeysRequest, context: Any) -> admin_pb2.RotateKeysResponse:
        version = await self._audited(
            "keys.rotate", lambda: self._releases.rotate(request.role), lambda _: request.role
        )
        return admin_pb2.RotateKeysResponse(root_version=version)

    # ---- models

    async def ListModels(self, request: admin_pb2.ListModelsRequest, context: Any) -> admin_pb2.ListModelsResponse:
        releases = await asyncio.to_thread(self._releases.releases)
        return admin_pb2.ListModelsResponse(models=[views.model(release) for release in releases])

    async def GetModel(self, request: admin_pb2.ModelRequest, context: Any) -> admin_pb2.Model:
        return views.model(await asyncio.to_thread(self._releases.release, request.model, request.release))

    async def PublishModel(self, request: admin_pb2.PublishModelRequest, context: Any) -> admin_pb2.Model:
        release = await self._audited(
            "model.publish", lambda: self._releases.publish(Path(request.bundle_path), request.name), str
        )
        return views.model(release)

    # ---- jobs

    async def SubmitJob(self, request: admin_pb2.SubmitJobRequest, context: Any) -> admin_pb2.Job:
        job = await self._audited(
            "job.submit", lambda: self._jobs.submit(request.toml, request.idempotency_key), lambda made: made.id
        )
        return await self._job(job)

    async def ListJobs(self, request: admin_pb2.ListJobsRequest, context: Any) -> admin_pb2.ListJobsResponse:
        return admin_pb2.ListJobsResponse(jobs=[views.job(job) for job in await asyncio.to_thread(self._jobs.jobs)])

    async def GetJob(self, request: admin_pb2.JobRequest, context: Any) -> admin_pb2.Job:
        return await self._job(await asyncio.to_thread(self._jobs.job, request.job))

    async def StopJob(self, request: admin_pb2.JobRequest, context: Any) -> admin_pb2.Job:
        job = await self._audited("job.stop", lambda: self._jobs.stop(request.job), lambda stopped: stopped.id)
        return await self._job(job)

    async def _job(self, job: Job) -> admin_pb2.Job:
        return views.job(job, spent=await asyncio.to_thread(self._jobs.spent, job))

    async def WatchJob(self, request: admin_pb2.JobRequest, context: Any) -> AsyncIterator[admin_pb2.JobEvent]:
        job, last = await asyncio.to_thread(self._jobs.job, request.job), 0
        async with _news(self._jobs.subscribe) as changed:
            while True:
                changed.clear()
                for event in await asyncio.to_thread(self._jobs.news, job.id, last):
                    yield views.job_event(event)
                    last = event.id
                    if event.kind in _JOB_ENDS:
                        return
                await changed.wait()

    async def ListRounds(self, request: admin_pb2.JobRequest, context: Any) -> admin_pb2.ListRoundsResponse:
        names = await self._names()
        rows = await asyncio.to_thread(self._jobs.rounds, request.job)
        return admin_pb2.ListRoundsResponse(rounds=[views.round_row(row, names) for row in rows])

    async def GetRound(self, request: admin_pb2.RoundRequest, context: Any) -> admin_pb2.Round:
        row = await asyncio.to_thread(self._jobs.round, request.job, request.round, request.attempt)
        events = await asyncio.to_thread(self._jobs.events, row.job)
        mine = [event for event in events if (event.round, event.attempt) == (row.round, row.attempt)]
        return views.round_row(row, await self._names(), mine)

    # ---- rollouts

    async def StartRollout(self, request: admin_pb2.StartRolloutRequest, context: Any) -> admin_pb2.Rollout:
        actor = calling_peer().name
        rollout = await self._audited(
            "rollout.start",
            lambda: self._rollouts.start(request.model, request.release, request.plan_toml, request.cohort, actor),
            lambda made: made.id,
        )
        return await self._rollout(rollout.id)

    async def ListRollouts(
        self, request: admin_pb2.ListRolloutsRequest, context: Any
    ) -> admin_pb2.ListRolloutsResponse:
        names, rollouts = await self._names(), await asyncio.to_thread(self._rollouts.rollouts)
        return admin_pb2.ListRolloutsResponse(rollouts=[views.rollout(item, names) for item in rollouts])

    async def GetRollout(self, request: admin_pb2.RolloutRequest, context: Any) -> admin_pb2.Rollout:
        return await self._rollout(request.rollout)

    async def PauseRollout(self, request: admin_pb2.RolloutRequest, context: Any) -> admin_pb2.Rollout:
        actor = calling_peer().name
        await self._audited("rollout.pause", lambda: self._rollouts.pause(request.rollout, actor, request.reason), _id)
        return await self._rollout(request.rollout)

    async def ResumeRollout(self, request: admin_pb2.RolloutRequest, context: Any) -> admin_pb2.Rollout:
        actor = calling_peer().name
        await self._audited("rollout.resume", lambda: self._rollouts.resume(request.rollout, actor), _id)
        return await self._rollout(request.rollout)

    async def UndoRollout(self, request: admin_pb2.RolloutRequest, context: Any) -> admin_pb2.Rollout:
        actor = calling_peer().name
        await self._audited("rollout.undo", lambda: self._rollouts.undo(request.rollout, actor, request.reason), _id)
        return await self._rollout(request.rollout)

    async def WatchRollout(self, request: admin_pb2.RolloutRequest, context: Any) -> AsyncIterator[admin_pb2.Rollout]:
        shown = None
        async with _news(self._rollouts.subscribe) as changed:
            while True:
                changed.clear()
                rollout = await asyncio.to_thread(self._rollouts.rollout, request.rollout)
                if rollout != shown:
                    yield await self._rollout(request.rollout)
                    shown = rollout
                if rollout.ended_at:
                    return
                await changed.wait()

    async def _rollout(self, rollout_id: str) -> admin_pb2.Rollout:
        rollout = await asyncio.to_thread(self._rollouts.rollout, rollout_id)
        records = await asyncio.to_thread(self._rollouts.records, rollout_id)
        return views.rollout(rollout, await self._names(), records)

    # ---- inside

    async def _names(self) -> dict[str, str]:
        return {device.id: device.name for device in await asyncio.to_thread(self._registry.devices)}

    async def _audited(self, action: str, call: Callable[[], T], subject: Callable[[T], str]) -> T:
        """Run a command of another noun and note who gave it."""
        actor = calling_peer().name
        result = await asyncio.to_thread(call)
        await asyncio.to_thread(self._registry.note, actor, action, subject(result))
        return result


def _id(rollout: Any) -> str:
    return str(rollout.id)


@contextlib.asynccontextmanager
async def _news(subscribe: Callable[[Callable[[Any], None]], Callable[[], None]]) -> AsyncIterator[asyncio.Event]:
    """An event that is set, in this loop, whenever the noun tells its watchers something."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Any) -> None:
        loop.call_soon_threadsafe(changed.set)

    unsubscribe = subscribe(tell)
    try:
        yield changed
    finally:
        unsubscribe()
