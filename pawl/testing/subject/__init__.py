"""Tests of a scheduler that is not ours, by the means by which ours is tested. See docs/testing-your-scheduler.md."""

from __future__ import annotations

from pawl.testing.subject.port import Accounting as Accounting
from pawl.testing.subject.port import Offers as Offers
from pawl.testing.subject.port import Output as Output
from pawl.testing.subject.port import Refused as Refused
from pawl.testing.subject.port import Request as Request
from pawl.testing.subject.port import Segment as Segment
from pawl.testing.subject.port import Settings as Settings
from pawl.testing.subject.port import Step as Step
from pawl.testing.subject.port import Subject as Subject
from pawl.testing.subject.port import Tokens as Tokens
