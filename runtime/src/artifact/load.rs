//! From an artifact to a program: which CPU's code a machine runs, and the code put in place.

use crate::cpu::{self, Fit, Host};
use crate::error::Error;
use crate::file;
use crate::file::error::quote;
use crate::program::{Aligned, MadeFor, Program, Signature};

use super::program::Planned;
use super::{Artifact, CODE, CONSTANTS, Listing, PROGRAM, code, refuse};

impl Artifact {
    /// The description of a CPU's code, its hash checked, and itself against the code's length.
    ///
    /// # Errors
    /// [`Error::File`] if it is damaged or malformed, [`Error::Machine`] for a CPU that the file has no code for.
    pub fn listing(&self, cpu: &str) -> Result<Listing, Error> {
        self.described(cpu)
    }

    /// The same of a function that is no model's.
    ///
    /// # Errors
    /// As [`listing`](Artifact::listing).
    pub fn function_listing(&self, cpu: &str) -> Result<Listing<Signature>, Error> {
        self.described(cpu)
    }

    fn described<P: Planned>(&self, cpu: &str) -> Result<Listing<P>, Error> {
        let kind = |is_model| match (is_model, &self.function) {
            (true, _) => "a model".to_string(),
            (false, None) => "a function of the tensor language".into(),
            (false, Some(name)) => {
                format!("function {} of the tensor language (`lapidary-run call` takes it)", quote(name))
            }
        };
        if P::IS_MODEL == self.function.is_some() {
            return Err(file::Error::file(&self.path, kind(P::IS_MODEL), kind(!P::IS_MODEL)).into());
        }
        if !self.cpus.iter().any(|c| c == cpu) {
            let reason = format!("it has no code for CPU {}, only for {}", quote(cpu), self.cpus.join(", "));
            return Err(Error::Machine { path: self.path.clone(), reason });
        }
        let name = format!("{PROGRAM}{cpu}");
        let listing = Listing::parse(&self.path, &name, self.checked(&name)?)?;
        if listing.cpu != cpu {
            return Err(refuse(&self.path, &name, &format!("CPU {cpu}"), quote(&listing.cpu)));
        }
        let bytes = |part: &str, of: &str| Ok::<_, Error>(self.named(&format!("{part}{of}"))?.bytes.len());
        listing.check(&self.path, bytes(CODE, &listing.code)?, bytes(CONSTANTS, &listing.tables)?)?;
        Ok(listing)
    }

    /// The program for this machine: the best one that it can run, or that for `cpu`. Its code is copied to memory that
    /// runs.
    ///
    /// # Errors
    /// [`Error::Machine`] if the machine cannot run it, [`Error::File`] if it is damaged or malformed.
    pub fn program(&self, cpu: Option<&str>) -> Result<Program, Error> {
        self.link(self.choose(cpu::host(), cpu)?)
    }

    /// The same of a function that is no model's.
    ///
    /// # Errors
    /// As [`program`](Artifact::program).
    pub fn function(&self, cpu: Option<&str>) -> Result<Program<Signature>, Error> {
        self.link(self.chosen(cpu::host(), cpu)?)
    }

    /// The description of the code that a machine would run: the best one that it can, or that for `cpu`.
    ///
    /// # Errors
    /// As [`program`](Artifact::program).
    pub fn choose(&self, host: &Host, cpu: Option<&str>) -> Result<Listing, Error> {
        self.chosen(host, cpu)
    }

    fn chosen<P: Planned>(&self, host: &Host, cpu: Option<&str>) -> Result<Listing<P>, Error> {
        let machine = |reason: String| Error::Machine { path: self.path.clone(), reason };
        let here = host.features.architecture().name();
        let architecture = self.target.split('-').next().unwrap_or_default();
        if architecture != here || !self.target.contains("linux") {
            let here = format!("{here}-{}", std::env::consts::OS);
            return Err(machine(format!("its code is for {}, this machine is {here}", quote(&self.target))));
        }
        if let Some(cpu) = cpu {
            let listing = self.described::<P>(cpu)?;
            let lacks = host.lacking(&listing.features);
            if !lacks.is_empty() {
                let (lacks, there) = (host.words(&lacks), host.description());
                let reason = format!("its code for {cpu} needs {lacks}, which this machine ({there}) lacks");
                return Err(machine(reason));
            }
            return Ok(listing);
        }
        let (mut lowest, mut otherwise) = (None::<Listing<P>>, None);
        for cpu in self.cpus.iter().rev() {
            let listing = self.described::<P>(cpu)?;
            match host.fit(&listing.features, listing.tuning.as_deref()) {
                Fit::Pays => return Ok(listing),
                Fit::Runs => otherwise = otherwise.or(Some(listing)),
                Fit::Lacks(_) => lowest = Some(listing),
            }
        }
        if let Some(listing) = otherwise {
            return Ok(listing);
        }
        let Some(Listing { cpu, features, .. }) = lowest else {
            return Err(refuse(&self.path, "__metadata__.cpus", "a CPU", "none".into()));
        };
        let (lacks, there) = (host.words(&host.lacking(&features)), host.description());
        Err(machine(format!(
            "its code for {cpu}, its oldest, needs {lacks}, which this machine ({there}) lacks"
        )))
    }

    /// Puts a CPU's code in place.
    fn link<P>(&self, listing: Listing<P>) -> Result<Program<P>, Error> {
        let name = format!("{CODE}{}", listing.code);
        let code = code::Executable::new(self.checked(&name)?).map_err(|e| Error::Machine {
            path: self.path.clone(),
            reason: format!("section {}: the system gives no memory that code can run in: {e}", quote(&name)),
        })?;
        let name = format!("{CONSTANTS}{}", listing.tables);
        let bytes = self.checked(&name)?;
        let constants = Aligned::try_from_bytes(bytes).ok_or_else(|| Error::Memory {
            what: format!("section {} of {}", quote(&name), self.path.display()),
            bytes: bytes.len(),
        })?;
        let base = code.base();
        // SAFETY: the code is what a compiler wrote, as its hash says, for instructions that this machine has; the
        // offsets, hashed too, are its entries; the program owns it.
        let link = |f: crate::program::Function<u64>| unsafe { f.link(base) };
        let functions = listing.functions.into_iter().map(link).collect();
        let made_for = MadeFor { cpu: listing.cpu, step: None, features: listing.features };
        Ok(Program { functions, constants, plan: listing.plan, made_for, code: Box::new(code) })
    }
}
